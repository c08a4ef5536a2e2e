package suite

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
	"github.com/smolvmm/smolvmm/bench/suite/boot"
)

// crowd is a run of many machines: so many MiB for the first, so many for each further one.
func crowd(name string, machines int, first, each float64, took time.Duration) (d boot.Density) {
	d.Subject = name
	for i := range machines {
		d.Starts, d.Done = append(d.Starts, took), append(d.Done, took*time.Duration(i+1))
		d.Memory = append(d.Memory, boot.MemoryAt{Machines: i + 1, PSS: uint64((first + each*float64(i)) * (1 << 20))})
	}
	return d
}

func TestDensity(t *testing.T) {
	var set figures.Set
	stopped := crowd("QEMU microvm", 3, 40, 30, time.Second)
	stopped.Stopped = "no memory"
	var ours []boot.Density
	for range 5 {
		ours = append(ours, crowd(figures.Ours, 100, 12, 3, 10*time.Millisecond))
	}
	densityInto(&set, [][]boot.Density{ours, {stopped}}, 100)
	for id, want := range map[string]float64{"density/all-started": 1000, "density/start": 10, "density/memory-each": 3.09, "density/growth": 0.2575} {
		f := set.Figure(id)
		if f == nil || math.Abs(f.Of(figures.Ours).Summary.Median-want) > 1e-3*want {
			t.Errorf("%s: %+v, want %v", id, f, want)
			continue
		}
		if q := f.Of("QEMU microvm"); q.Failed != 1 || !strings.Contains(q.Failure, "3 machines: no memory") {
			t.Errorf("%s: a crowd that was stopped: %+v", id, q)
		}
	}
	if len(set.Goals) != 2 || set.Goals[0].Verdict != stats.Reached || set.Goals[1].Verdict != stats.Reached || len(set.Curves) != 2 {
		t.Errorf("%+v, %d curves", set.Goals, len(set.Curves))
	}
}

func TestWriteAndCompare(t *testing.T) {
	made := func(ours float64) string {
		s := &Results{}
		s.Add(figures.Figure{ID: "boot/x", What: "x", Unit: "ms", Better: figures.Less, Series: []figures.Series{
			{Subject: figures.Ours, Values: figures.Values{ours, ours, ours, ours, ours}},
			{Subject: "QEMU microvm", Values: figures.Values{50, 51, 50, 52, 50}},
		}})
		dir := filepath.Join(t.TempDir(), "a", "b")
		names, err := WriteFiles(dir, s)
		if err != nil || !slices.Equal(names, []string{"boot-x-cdf.svg", FileCSV, FileJSON, FileMarkdown}) {
			t.Fatal(names, err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != len(names) {
			t.Errorf("%v, %v", left, err)
		}
		return filepath.Join(dir, FileJSON)
	}
	a, b := made(5), made(7)
	for _, c := range []struct {
		before, after string
		want          int
	}{{a, a, 0}, {a, b, 1}, {b, a, 0}} {
		var out strings.Builder
		if n, err := Compare(c.before, c.after, 0.05, &out); n != c.want || err != nil || !strings.Contains(out.String(), "| boot/x |") {
			t.Errorf("%d slowdowns, %v, want %d\n%s", n, err, c.want, out.String())
		}
	}
	empty := filepath.Join(t.TempDir(), "e.json")
	doc, err := json.Marshal(&Results{Version: figures.Version})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(empty, doc, 0o644); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if _, err := Compare(a, empty, 0.05, &out); err == nil || !strings.Contains(err.Error(), "in common") {
		t.Errorf("nothing in common: %v", err)
	}
	if err := writeFile(filepath.Join(t.TempDir(), "no", "such"), nil); err == nil {
		t.Error("a file in a folder that is not there")
	}
}

// TestRun: a program that is none of smolvmm's ends the run; parts that fail are told of beside what was measured.
func TestRun(t *testing.T) {
	if _, err := Run(t.Context(), Options{What: []string{"boot"}, Program: "/nonexistent"}); err == nil {
		t.Error("a program that is not there was measured")
	}
	fake := filepath.Join(t.TempDir(), "smolvmm")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\n[ \"$1\" = version ] && echo fake 1 || exit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	told := 0
	r, err := Run(t.Context(), Options{
		What: []string{"density", "net"}, Program: fake, Rounds: 1, MiB: 32, Machines: 2, Loads: []string{"rr"}, Megabytes: 1, Count: 10,
		Progress: func(string, int, int) { told++ },
	})
	if err == nil || !strings.Contains(err.Error(), "no machine of smolvmm's started") || !strings.Contains(err.Error(), "runs of smolvmm failed") {
		t.Errorf("%v", err)
	}
	if r == nil || r.Program.Version != "fake 1" || told == 0 {
		t.Errorf("%+v, told %d times", r, told)
	}
	if !slices.Contains(Names(), "disk") || !slices.Contains(Peers(), "qemu") || !slices.Contains(Loads(), "conn") {
		t.Error(Names(), Peers(), Loads())
	}
}

func TestMissed(t *testing.T) {
	reached, doubtful := figures.Goal{What: "a", Verdict: stats.Reached}, figures.Goal{What: "b", Verdict: stats.Unsettled}
	lost := figures.Goal{What: "c", Bound: 0.3, Figure: stats.Interval{Value: 2, Low: 1, High: 3}, Verdict: stats.Missed}
	if err := missed([]figures.Goal{reached, doubtful}); err != nil {
		t.Error(err)
	}
	if err := missed([]figures.Goal{reached, lost}); err == nil || err.Error() != "c: 2.00 [1.00, 3.00], at most 0.300" {
		t.Error(err)
	}
	if all := All(); slices.Contains(all, "gate") || !slices.Contains(Names(), "gate") || len(all) != len(Names())-1 {
		t.Errorf("all are %v", all)
	}
}
