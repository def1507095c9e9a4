package chaos_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	schema "github.com/jcp/ticketwave/sql"
)

// nextBuild is what the next build of the programs changes: one more field, and another word for a reason, which today's
// builds cannot read. It reads both words.
var nextBuild = []struct{ file, old, new string }{
	{"outbox/internal/build/build.go", `return revision + changed`, `return "next-" + revision + changed`},
	{"contracts/booking.go", "\tQuantityReduced int ", "\tSalesChannel string `json:\"salesChannel,omitempty\"`\n\tQuantityReduced int "},
	{"contracts/booking.go", `UndoReason = "booking_cancelled"`, `UndoReason = "given_up"`},
	{"contracts/booking.go", `case UndoBookingRejected, UndoBookingExpired,`, `case "booking_cancelled", UndoBookingRejected, UndoBookingExpired,`},
	{"services/booking/events.go", `contracts.UpdateEventInventory{`, `contracts.UpdateEventInventory{SalesChannel: "web", `},
	{"services/saga/events.go", `contracts.UpdateEventInventory{`, `contracts.UpdateEventInventory{SalesChannel: "web", `},
}

// buildNext compiles the services as their next build, and returns where they are.
func (r *run) buildNext() (bin string) {
	r.Helper()
	dir := filepath.Join(r.w.dir, "next")
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.Fatal(err)
	}
	for i, change := range nextBuild {
		original, err := filepath.Abs(filepath.Join("..", change.file))
		if err != nil {
			r.Fatal(err)
		}
		from := original
		if earlier, ok := overlay.Replace[original]; ok {
			from = earlier
		}
		text, err := os.ReadFile(from)
		if err != nil {
			r.Fatal(err)
		}
		if n := strings.Count(string(text), change.old); n != 1 {
			r.Fatalf("%s has %q %d times: the next build cannot be made", change.file, change.old, n)
		}
		file := filepath.Join(dir, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(file, []byte(strings.Replace(string(text), change.old, change.new, 1)), 0o644); err != nil {
			r.Fatal(err)
		}
		overlay.Replace[original] = file
	}
	document, err := json.Marshal(overlay)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "overlay.json"), document, 0o644)
	}
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := r.context(buildLimit)
	defer cancel()
	bin = filepath.Join(dir, "bin")
	cmd := exec.Command("go", "build", "-tags", "failpoints", "-overlay", filepath.Join(dir, "overlay.json"), "-o", bin+"/", "./cmd/...")
	cmd.Dir = "../services"
	if _, err := output(ctx, cmd); err != nil {
		r.Fatal(err)
	}
	return bin
}

// upgraded runs old and new programs side by side, who writes before who reads, and then replaces the old ones one by one.
func upgraded(r *run) {
	next := r.buildNext()
	r.begin()
	r.w.builds["booking2"] = next
	r.again("booking2")
	r.load.aim(r.w.ports["booking2"])
	r.load.await(r.T, 20)
	r.step("a new booking service writes beside the old one")
	kept := map[string]int{}
	for _, reader := range []string{"catalog", "payment"} {
		eventually(r.T, buildLimit, func() bool {
			var n int
			r.w.admin(r.T, reader, `SELECT count(*) FROM inbox.stuck WHERE class = 'undecodable'`, nil, &n)
			kept[reader] = n
			return n > 0
		}, "nothing that an old %s cannot read has come to it", reader)
	}
	r.load.aim(r.w.ports["booking"])
	r.load.await(r.T, 20)
	for _, name := range append([]string{"catalog", "payment"}, schema.Services...) {
		if r.w.builds[name] != "" {
			continue
		}
		r.w.builds[name], r.w.builds[name+"2"] = next, next
		if p := r.w.procs[name+"2"]; p == nil {
			r.again(name + "2") // beside the old one
		}
		if name == "booking" {
			r.load.aim(r.w.ports["booking2"])
		}
		r.w.stop(r.T, name)
		r.again(name)
		if name == "booking" {
			r.load.aim(r.w.ports["booking"])
		}
		r.w.stop(r.T, name+"2")
		delete(r.w.procs, name+"2")
		r.load.await(r.T, 10)
		r.step("a new " + name)
	}
	r.note("of what old builds could not read, the catalog had %d and payment %d at first, and the new builds took it up", kept["catalog"], kept["payment"])
	r.healed("consumer")
}
