package life_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jcp/ticketwave/services/booking/life"
)

// limit is how many worlds there may be; a decider that makes more has no small state space.
const limit = 4_000_000

// explored is the whole graph of worlds.
type explored struct {
	*decider
	worlds []world
	from   []int32 // the world that each was first reached from
	by     []message
	known  map[world]int32
	ways   []int32 // where the steps lead, world after world
	until  []int   // where those of each world end
	wrong  string  // the first violation and how it came about, or empty
	ends   int
}

// explore visits every world that can be reached, breadth first, until something is wrong.
func explore(led bool, f next) *explored {
	x := &explored{decider: newDecider(led, f), known: map[world]int32{}}
	x.reach(x.begin(), -1, 0)
	if why := x.decider.wrong(x.worlds[0]); why != "" {
		x.wrong = why + x.story(0)
		return x
	}
	for at := 0; at < len(x.worlds); at++ {
		w := x.worlds[at]
		if x.atRest(w) {
			x.ends++
		}
		for _, s := range x.steps(w) {
			to, fresh := x.reach(s.to, int32(at), s.what)
			why := s.broken
			if why == "" && fresh { // a known world was judged when it was new
				why = x.decider.wrong(s.to)
			}
			if why != "" {
				x.wrong = why + x.story(at) + "\n  " + s.what.String()
				return x
			}
			x.ways = append(x.ways, to)
		}
		x.until = append(x.until, len(x.ways))
		if len(x.worlds) > limit {
			x.wrong = "there is no end of worlds" + x.story(at)
			return x
		}
	}
	x.wrong = x.stranded()
	return x
}

// reach returns the world's number, and whether it is new.
func (x *explored) reach(w world, from int32, by message) (number int32, fresh bool) {
	if number, known := x.known[w]; known {
		return number, false
	}
	number = int32(len(x.worlds))
	x.known[w] = number
	x.worlds, x.from, x.by = append(x.worlds, w), append(x.from, from), append(x.by, by)
	return number, true
}

// stranded is how a world came about from which no end can be reached, or empty. It looks at worlds in the opposite order of
// their discovery, again and again until nothing new is known.
func (x *explored) stranded() string {
	good := make([]bool, len(x.worlds))
	for more := true; more; {
		more = false
		for at := len(good) - 1; at >= 0; at-- {
			if !good[at] && x.leads(at, good) {
				good[at], more = true, true
			}
		}
	}
	if at := slices.Index(good, false); at >= 0 {
		return "no end can be reached" + x.story(at)
	}
	return ""
}

// leads reports whether the world is an end, or the next step can lead to a good one.
func (x *explored) leads(at int, good []bool) bool {
	begin := 0
	if at > 0 {
		begin = x.until[at-1]
	}
	return x.atRest(x.worlds[at]) || slices.ContainsFunc(x.ways[begin:x.until[at]], func(to int32) bool { return good[to] })
}

// story is the shortest way to a world.
func (x *explored) story(at int) string {
	var lines []string
	for ; at >= 0; at = int(x.from[at]) {
		w := x.worlds[at]
		b := x.states[w.booking]
		lines = append(lines, fmt.Sprintf("\n  %s: %s, tickets %s, payment %s; catalog %d, payment %d, coordinator %v; under way %s",
			x.by[at], b.Status, b.Inventory, b.Payment, w.tickets, w.money, w.saga, w.net))
	}
	slices.Reverse(lines)
	return strings.Join(lines, "")
}

var styles = map[string]bool{"choreography": false, "orchestration": true}

// Everything that can happen ends well.
func TestEveryOrderEndsWell(t *testing.T) {
	t.Parallel()
	for style, led := range styles {
		t.Run(style, func(t *testing.T) {
			t.Parallel()
			x := explore(led, life.Next)
			if x.wrong != "" {
				t.Fatal(x.wrong)
			}
			seen := map[life.Status]bool{}
			for _, b := range x.states {
				seen[b.Status] = true
			}
			if len(seen) != 7 {
				t.Errorf("the booking was only ever %v", seen)
			}
			t.Logf("%d worlds, %d of them ends", len(x.worlds), x.ends)
		})
	}
}
