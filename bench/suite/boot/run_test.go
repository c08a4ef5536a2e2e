package boot

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/smaps"
)

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

// waiting is a program that prints the mark itself and lives on: one that a shell
// becomes behind the mark has no memory for a moment.
func waiting(t *testing.T) []string {
	t.Helper()
	marked := filepath.Join(t.TempDir(), "marked")
	if err := os.WriteFile(marked, []byte("noise\n\002"), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"tail", "-n", "+1", "-f", marked}
}

func TestStart(t *testing.T) {
	any := func(smaps.Mapping) bool { return true }
	for _, c := range []struct {
		name  string
		l     Launch
		check func(Sample) bool
		err   string
	}{
		{
			name: "the mark ends it, and what runs on is killed",
			l:    Launch{argv: waiting(t), ram: any},
			check: func(s Sample) bool {
				return s.Mark > 0 && s.Until == 0 && s.End == 0 && s.Memory != nil && s.Memory.Guest > 0
			},
		},
		{
			name: "mark, console, line, in that order",
			l:    Launch{argv: sh(`printf 'a\nINIT: too early\n\002'; sleep 0.03; printf 'kernel\n'; sleep 0.03; printf ' INIT: no\nINIT: yes\n'; exec sleep 60`), until: "INIT:"},
			check: func(s Sample) bool {
				return s.Mark > 0 && s.Console >= s.Mark+20*time.Millisecond && s.Until >= s.Console+20*time.Millisecond
			},
		},
		{
			name:  "its end is waited for",
			l:     Launch{argv: sh(`printf '\002'; sleep 0.03`), exit: true},
			check: func(s Sample) bool { return s.End >= s.Mark+20*time.Millisecond },
		},
		{
			name:  "a program alone, whatever it prints first",
			l:     Launch{argv: sh(`sleep 0.03; echo version 1; sleep 0.03`), plain: true, exit: true},
			check: func(s Sample) bool { return s.Mark >= 20*time.Millisecond && s.End >= s.Mark+20*time.Millisecond },
		},
		{name: "a program alone that prints nothing", l: Launch{argv: sh(`exit 0`), plain: true, exit: true}, err: "ended before"},
		{name: "it ends with the wrong status", l: Launch{argv: sh(`printf '\002'; exit 3`), exit: true}, err: "exit status 3"},
		{name: "no mark", l: Launch{argv: sh(`echo something; echo said >&2`)}, err: `printed "something\n", "said\n"`},
		{name: "no line", l: Launch{argv: sh(`printf '\002'`), until: "INIT:"}, err: "ended before"},
		{name: "a flood", l: Launch{argv: sh(`yes`)}, err: "mebibyte"},
		{name: "not there", l: Launch{argv: []string{"/nonexistent"}}, err: "no such file"},
		{name: "guest memory not found", l: Launch{argv: waiting(t), ram: smaps.Named("no such mapping")}, err: "not among"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.l.limit = 20 * time.Second
			s, err := Start(t.Context(), c.l)
			switch {
			case c.err == "" && err != nil:
				t.Fatal(err)
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Fatalf("error %v, want %q", err, c.err)
			case c.check != nil && !c.check(s):
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestStartLimit(t *testing.T) {
	began := time.Now()
	if _, err := Start(t.Context(), Launch{argv: sh(`exec sleep 60`), limit: 50 * time.Millisecond}); !errors.Is(err, errLimit) {
		t.Errorf("%v, want the limit", err)
	}
	// A program that ends its output and lives on must not hang the run either.
	if _, err := Start(t.Context(), Launch{argv: sh(`printf '\002'; exec sleep 60 >&-`), exit: true, limit: 50 * time.Millisecond}); !errors.Is(err, errLimit) {
		t.Errorf("%v, want the limit", err)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestExperiment runs four programs in turn and looks at the order, at what a peer's failure does and at ours.
func TestExperiment(t *testing.T) {
	good := Subject{name: "good", must: true}
	bad := Subject{name: "bad"}
	var order []string
	e := Experiment{what: "test", rounds: 4, warm: 1, Launch: func(s Subject) Launch {
		order = append(order, s.name)
		script := `printf '\002'`
		if s.name == "bad" {
			script = `echo broken`
		}
		return Launch{argv: sh(script), limit: 20 * time.Second}
	}}
	xs := e.run(t.Context(), []Subject{good, bad}, io.Discard)
	if want := []string{"good", "bad", "bad", "good", "good", "bad", "good", "good"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	g, b := find(xs, "good"), find(xs, "bad")
	if len(g.values(toMark)) != 4 || g.failed != 0 {
		t.Errorf("good: %d figures, %d failed", len(g.values(toMark)), g.failed)
	}
	if !b.dropped || b.failed != 3 || !strings.Contains(b.Failure, "broken") || len(b.values(toMark)) != 0 {
		t.Errorf("bad: %+v", b)
	}
	if a, _ := pairs(g, b, toMark); len(a) != 0 {
		t.Errorf("%d pairs with a subject that never worked", len(a))
	}
	// A machine that is busy in every other round: those rounds are done again, and the figures are as many.
	calls := 0
	e.busy = func() float64 { calls++; return float64(calls % 2) }
	if xs := e.run(t.Context(), []Subject{good}, io.Discard); len(xs[0].values(toMark)) != 4 || calls != 10 {
		t.Errorf("%d figures after %d looks at the machine, want 4 after 10", len(xs[0].values(toMark)), calls)
	}
	e.busy = func() float64 { return 9 }
	if xs := e.run(t.Context(), []Subject{bad}, io.Discard); !xs[0].dropped {
		t.Error("a machine that is never quiet holds up the run for ever")
	}
	e.busy = nil
	for _, must := range []bool{false, true} {
		var r Report
		r.Samples, r.Commands = map[string][]*Sample{}, map[string][]string{}
		bad.must = must
		r.run(t.Context(), e, []Subject{good, bad}, io.Discard, toMark)
		if len(r.Failures) != 1 || r.Failures[0].Times != 3 || r.Failures[0].Subject != "bad" || r.Broken != must {
			t.Errorf("ours %v: failures %+v, broken %v", must, r.Failures, r.Broken)
		}
	}
}
