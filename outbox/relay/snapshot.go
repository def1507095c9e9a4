package relay

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// snapshot is PostgreSQL's pg_snapshot: transactions below xmax are visible unless listed in xip.
type snapshot struct {
	xmin, xmax uint64
	xip        []uint64 // sorted
}

// nothing is the snapshot in which no transaction is visible.
var nothing = snapshot{xmin: 1, xmax: 1}

// parseSnapshot reads the text form "xmin:xmax:xip,xip".
func parseSnapshot(text string) (snapshot, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return snapshot{}, fmt.Errorf("snapshot %q: want xmin:xmax:xip", text)
	}
	xmin, err1 := strconv.ParseUint(parts[0], 10, 64)
	xmax, err2 := strconv.ParseUint(parts[1], 10, 64)
	if err1 != nil || err2 != nil || xmin == 0 || xmax < xmin {
		return snapshot{}, fmt.Errorf("snapshot %q: bad xmin or xmax", text)
	}
	s := snapshot{xmin: xmin, xmax: xmax}
	if parts[2] == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(parts[2], ",") {
		id, err := strconv.ParseUint(part, 10, 64)
		if err != nil || id < xmin || id >= xmax || len(s.xip) > 0 && id <= s.xip[len(s.xip)-1] {
			return snapshot{}, fmt.Errorf("snapshot %q: bad transaction id %q", text, part)
		}
		s.xip = append(s.xip, id)
	}
	return s, nil
}

// String is PostgreSQL's text form.
func (s snapshot) String() string {
	return fmt.Sprintf("%d:%d:%s", s.xmin, s.xmax, joined(s.xip))
}

// sees reports whether the transaction's effects are visible.
func (s snapshot) sees(tx uint64) bool {
	if tx >= s.xmax {
		return false
	}
	_, open := slices.BinarySearch(s.xip, tx)
	return !open
}

// window is the set of transactions visible in target and not in relayed.
type window struct {
	from, to uint64   // new ids: from <= tx < to ...
	except   []uint64 // ... but these, which were still open
	late     []uint64 // ids below from that were open then and no longer are
}

// between computes a window. It is an error for target to be older than relayed: then the server has gone
// back in time, and ids no longer mean what they meant.
func between(relayed, target snapshot) (window, error) {
	if target.xmax < relayed.xmax {
		return window{}, fmt.Errorf("snapshot %s is older than the cursor's %s: %w", target, relayed, ErrIdentity)
	}
	w := window{from: relayed.xmax, to: target.xmax}
	for _, tx := range target.xip {
		if tx >= w.from {
			w.except = append(w.except, tx)
		}
	}
	for _, tx := range relayed.xip {
		if target.sees(tx) {
			w.late = append(w.late, tx)
		}
	}
	return w, nil
}

// empty reports that no transaction can be in the window.
func (w window) empty() bool { return w.from == w.to && len(w.late) == 0 }

// contains is the definition, for tests and for reading: the SQL in window.go says the same.
func (w window) contains(tx uint64) bool {
	if tx >= w.from && tx < w.to {
		return !slices.Contains(w.except, tx)
	}
	return slices.Contains(w.late, tx)
}

func joined(ids []uint64) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(id, 10))
	}
	return b.String()
}
