package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/internal/smaps"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// gated is a report of ten rounds: smolvmm with these, QEMU with what it has on a quiet machine.
func gated(start, cpu, version time.Duration, faults int64, dirtyMiB uint64) *Report {
	r := &Report{Samples: map[string][]*Sample{}, order: []string{nameOurs, nameQEMU}}
	one := func(name string, start, cpu, version time.Duration, faults int64, dirtyMiB uint64) {
		for range 10 {
			m := &smaps.Memory{PrivateDirty: dirtyMiB << 20}
			r.Samples[whatTiny+"/"+name] = append(r.Samples[whatTiny+"/"+name], &Sample{Mark: start, CPU: cpu, Faults: faults, Memory: m})
			r.Samples[whatVersion+"/"+name] = append(r.Samples[whatVersion+"/"+name], &Sample{Mark: version, End: version})
		}
	}
	one(nameOurs, start, cpu, version, faults, dirtyMiB)
	one(nameQEMU, 55*time.Millisecond, 45*time.Millisecond, 18*time.Millisecond, 3350, 11)
	return r
}

func TestGate(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name     string
		r        *Report
		stripped int64
		missed   string
	}{
		{"as it is", gated(5*ms, 6*ms, 3*ms, 490, 1), 8 << 20, ""},
		{"a machine half as fast for smolvmm alone", gated(10*ms, 12*ms, 6*ms, 900, 2), 8 << 20, ""},
		{"a slow start", gated(20*ms, 6*ms, 3*ms, 490, 1), 8 << 20, "first guest instruction, seen"},
		{"much work", gated(5*ms, 15*ms, 3*ms, 490, 1), 8 << 20, "processor time"},
		{"many pages", gated(5*ms, 6*ms, 3*ms, 1200, 1), 8 << 20, "page faults"},
		{"a slow program", gated(5*ms, 6*ms, 10*ms, 490, 1), 8 << 20, "--version"},
		{"much memory", gated(5*ms, 6*ms, 3*ms, 490, 7), 8 << 20, "private dirty"},
		{"a large program", gated(5*ms, 6*ms, 3*ms, 490, 1), 13 << 20, "size of smolvmm"},
	} {
		var set figures.Set
		if err := c.r.Gate(&set, c.stripped); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var missed []string
		for _, g := range set.Goals {
			switch g.Verdict {
			case stats.Missed:
				missed = append(missed, g.What)
			case stats.Unsettled:
				t.Errorf("%s: %s is not settled by ten equal rounds", c.name, g.What)
			}
		}
		got := strings.Join(missed, "; ")
		if len(set.Goals) != 6 || c.missed == "" && got != "" || c.missed != "" && (len(missed) != 1 || !strings.Contains(got, c.missed)) {
			t.Errorf("%s: %d goals, missed %q, want %q", c.name, len(set.Goals), got, c.missed)
		}
	}
	alone := gated(5*ms, 6*ms, 3*ms, 490, 1)
	alone.order = alone.order[:1]
	if err := alone.Gate(new(figures.Set), 1); err == nil || !strings.Contains(err.Error(), "one of them is not there") {
		t.Errorf("without QEMU: %v", err)
	}
}

func TestPair(t *testing.T) {
	got := Pair([]Subject{{name: nameFloorC}, {name: nameOurs}, {name: nameOpen}, {name: nameQEMU}, {name: nameGokvm}})
	if len(got) != 2 || got[0].name != nameOurs || got[1].name != nameQEMU {
		t.Errorf("%+v", got)
	}
}

// TestStripped holds the size against binutils'.
func TestStripped(t *testing.T) {
	dir := t.TempDir()
	program, stripped := filepath.Join(dir, "floor"), filepath.Join(dir, "stripped")
	if err := buildFloorC(program); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command("strip", "-o", stripped, program).CombinedOutput(); err != nil {
		t.Skipf("strip: %v: %s", err, out)
	}
	size := func(name string) int64 {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	full, want, got := size(program), size(stripped), Stripped(program, size(program))
	if got >= full || max(got-want, want-got) > full/50 {
		t.Errorf("%d of %d bytes, strip leaves %d", got, full, want)
	}
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := Stripped(script, 10); got != 10 {
		t.Errorf("a script: %d", got)
	}
}
