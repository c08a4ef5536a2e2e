package boot

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/smaps"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// made is a series of starts with these times in milliseconds to the mark, and this private memory in MiB.
func made(name string, dirtyMiB uint64, times ...float64) *Series {
	x := &Series{Subject: Subject{name: name}}
	for _, v := range times {
		x.samples = append(x.samples, &Sample{
			Mark: time.Duration(v * float64(time.Millisecond)), Memory: &smaps.Memory{RSS: dirtyMiB << 20, PrivateDirty: dirtyMiB << 20},
		})
	}
	return x
}

func TestTables(t *testing.T) {
	broken := &Series{Subject: Subject{name: nameGokvm}, failed: 3, Failure: "it broke"}
	xs := []*Series{
		made(nameFloorGo, 2, 2, 2, 2), made(nameFloorC, 1, 1, 1, 1), made(nameOurs, 5, 2, 2.5, 3), made(nameQEMU, 20, 40, 50, 60), broken,
	}
	ts := []table{tabulate(whatTiny, xs, toMark), tabulate(whatTiny, xs, dirty)}
	if ts[0].Floor != nameFloorC {
		t.Errorf("compared with %q, want the floor in C", ts[0].Floor)
	}
	gs := goals(ts, false)
	if len(gs) != 3 {
		t.Fatalf("%d goals: %v", len(gs), gs)
	}
	for i, want := range []stats.Verdict{stats.Reached, stats.Reached, stats.Reached} {
		if gs[i].Verdict != want {
			t.Errorf("%s: want %s", gs[i], want)
		}
	}
	if in := goals(ts, true); len(in) != 1 {
		t.Errorf("in the lab: %v, want the memory alone", in)
	}
	var b strings.Builder
	r := Report{Tables: ts, Goals: gs, MiB: 128, Absent: []string{"something: not built"}, Failures: []Failure{{whatTiny, nameGokvm, 3, "it broke"}}, Warnings: warnings(ts, gs, 0.5)}
	r.Markdown(&b)
	for _, want := range []string{
		"| | median | p10–p90 | ÷ QEMU | ÷ floor (C) | over it |\n|---|---:|---:|---:|---:|---:|\n",
		"| smolvmm | 2.50 | 2.10–2.90 | 0.050 [0.050, 0.050] | 2.50 [2.00, 3.00] | 1.50 [1.00, 2.00] |\n",
		"| QEMU microvm | 50.0 | 42.0–58.0 |  | 50.0 [40.0, 60.0] | 49.0 [39.0, 59.0] |\n",
		"| gokvm | none of 3 starts came that far |",
		"over the floor (C): 1.50 [1.00, 2.00] ms, at most 2.00 ms: reached\n",
		"gokvm: 3, the first: it broke", "something: not built", "others used 0.50 of a processor",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "| gokvm") && strings.Count(line, "|") != 7 {
			t.Errorf("a row with other columns than the head: %s", line)
		}
	}

	slow := []*Series{made(nameFloorC, 1, 1, 1, 1), made(nameOurs, 13, 9, 9, 9), made(nameQEMU, 20, 10, 10, 10)}
	for _, g := range goals([]table{tabulate(whatTiny, slow, toMark), tabulate(whatTiny, slow, dirty)}, false) {
		if g.Verdict != stats.Missed {
			t.Errorf("%s, want it missed", g)
		}
	}
	same := []*Series{made(nameOurs, 1, 9, 10, 11), made(nameQEMU, 1, 11, 10, 9)}
	same2 := []table{tabulate(whatTiny, same, toMark)}
	if w := strings.Join(warnings(same2, goals(same2, false), 0), "\n"); !strings.Contains(w, "no difference from QEMU") {
		t.Errorf("two alike: %q", w)
	}
}

func TestDigits(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.00123: "0.0012", 0.1234: "0.123", 1.234: "1.23", 12.34: "12.3", 1234: "1234", -2.5: "-2.50"} {
		if got := stats.Digits(v); got != want {
			t.Errorf("stats.Digits(%v) = %q, want %q", v, got, want)
		}
	}
}

// TestReportOnKVM measures the floor alone on this machine's KVM, from building to the table.
func TestReportOnKVM(t *testing.T) {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		t.Skipf("SKIPPED, no floor was measured: %v", err)
	} else {
		f.Close()
	}
	if os.Getenv("SMOLVMM_LAB") != "" {
		t.Skip("SKIPPED: no compiler in the lab")
	}
	dir := t.TempDir()
	if err := BuildAll(dir, os.Args[0], nil, io.Discard); err != nil {
		t.Fatal(err)
	}
	o := Options{Rounds: 3, Warm: 1, MiB: 64, Only: nameFloorGo + "," + nameFloorC + "," + nameFloorChips}
	subjects, absent := Programs{dir}.Subjects(nil, "no-such-program")
	r, err := Measure(t.Context(), &o, subjects, absent, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	r.Markdown(&b)
	want := []string{"| floor (Go) |"}
	if (Programs{dir}).Has("floor-c") {
		want = append(want, "| floor (C) |", "| floor (C) + irqchip + PIT |")
	}
	for _, w := range want {
		if strings.Count(b.String(), w) != 4 {
			t.Errorf("want %q in four tables:\n%s", w, b.String())
		}
	}
}
