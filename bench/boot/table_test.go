package main

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// made is a series of starts with these times in milliseconds to the mark, and this private memory in MiB.
func made(name string, dirtyMiB uint64, times ...float64) *series {
	x := &series{subject: subject{name: name}}
	for _, v := range times {
		x.samples = append(x.samples, &sample{
			Mark: time.Duration(v * float64(time.Millisecond)), Memory: &memory{RSS: dirtyMiB << 20, PrivateDirty: dirtyMiB << 20},
		})
	}
	return x
}

func TestTables(t *testing.T) {
	broken := &series{subject: subject{name: nameGokvm}, failed: 3, failure: "it broke"}
	xs := []*series{
		made(nameFloorGo, 2, 2, 2, 2), made(nameFloorC, 1, 1, 1, 1), made(nameOurs, 8, 3, 3.5, 4), made(nameQEMU, 20, 40, 50, 60), broken,
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
	r := report{Tables: ts, Goals: gs, MiB: 128, Absent: []string{"something: not built"}, Failures: []failure{{whatTiny, nameGokvm, 3, "it broke"}}, Warnings: warnings(ts, gs, 0.5)}
	r.markdown(&b)
	for _, want := range []string{
		"| | median | p10–p90 | ÷ QEMU | ÷ floor (C) | over it |\n|---|---:|---:|---:|---:|---:|\n",
		"| smolvmm | 3.50 | 3.10–3.90 | 0.070 [0.067, 0.075] | 3.50 [3.00, 4.00] | 2.50 [2.00, 3.00] |\n",
		"| QEMU microvm | 50.0 | 42.0–58.0 |  | 50.0 [40.0, 60.0] | 49.0 [39.0, 59.0] |\n",
		"| gokvm | none of 3 starts came that far |",
		"over the floor (C): 2.50 [2.00, 3.00] ms, at most 3.00 ms: reached\n",
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

	slow := []*series{made(nameFloorC, 1, 1, 1, 1), made(nameOurs, 13, 9, 9, 9), made(nameQEMU, 20, 10, 10, 10)}
	for _, g := range goals([]table{tabulate(whatTiny, slow, toMark), tabulate(whatTiny, slow, dirty)}, false) {
		if g.Verdict != stats.Missed {
			t.Errorf("%s, want it missed", g)
		}
	}
	same := []*series{made(nameOurs, 1, 9, 10, 11), made(nameQEMU, 1, 11, 10, 9)}
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

func TestParseStat(t *testing.T) {
	got, err := parseStat(strings.NewReader("cpu  100 50 25 9999 9999 10 5 10 0 0\ncpu0 1 1 1 1 1 1 1 1\n"))
	if err != nil || got != 2 {
		t.Errorf("%v, %v; want 2 s", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2\n", "cpu a b c d e f g h i j\n"} {
		if _, err := parseStat(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	u, err := readUsage()
	if err != nil || u.all <= 0 || u.own <= 0 {
		t.Errorf("this machine: %+v, %v", u, err)
	}
	at := time.Now()
	if got := others(usage{at, 10, 2}, usage{at.Add(2 * time.Second), 14, 3}); got != 1.5 {
		t.Errorf("others %v, want 1.5", got)
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct{ args, err string }{
		{"-n 0", "-n 0"}, {"-m 8", "-m 8"}, {"x", `"x" is not a flag`}, {"-also x", "NAME=PATH"}, {"-also a/b=c", "NAME=PATH"},
		{"-n 5 -also old=/bin/true", ""},
	} {
		var o options
		err := o.parse(strings.Fields(c.args), io.Discard)
		if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.args, err, c.err)
		}
	}
	o := options{kernel: "/nonexistent", disk: os.DevNull}
	if err := o.findKernel(t.TempDir(), io.Discard); err == nil {
		t.Error("a kernel that is not there was taken")
	}
	o = options{kernel: "none"}
	if err := o.findKernel(t.TempDir(), io.Discard); err != nil || o.kernel != "" {
		t.Errorf("no kernel wanted: %q, %v", o.kernel, err)
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
	if err := buildAll(dir, os.Args[0], nil, io.Discard); err != nil {
		t.Fatal(err)
	}
	o := options{rounds: 3, warm: 1, mib: 64, only: nameFloorGo + "," + nameFloorC + "," + nameFloorChips}
	r, err := measure(&o, programs{dir}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	r.markdown(&b)
	want := []string{"| floor (Go) |"}
	if (programs{dir}).has("floor-c") {
		want = append(want, "| floor (C) |", "| floor (C) + irqchip + PIT |")
	}
	for _, w := range want {
		if strings.Count(b.String(), w) != 4 {
			t.Errorf("want %q in four tables:\n%s", w, b.String())
		}
	}
}
