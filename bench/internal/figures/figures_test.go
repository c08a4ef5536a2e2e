package figures

import (
	"bytes"
	"encoding/csv"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/machine"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// times are values around a middle, the same every time.
func times(middle, spread float64, n int) (v Values) {
	for i := range n {
		v = append(v, middle*(1+spread*math.Sin(float64(7*i))))
	}
	return v
}

// made is a set with one figure of smolvmm's, of QEMU's and of a broken peer's.
func made(ours, qemu float64, n int, better Better) *Set {
	s := &Set{When: time.Unix(1e9, 0).UTC(), Host: machine.Host{CPU: "some CPU", CPUs: 2, Kernel: "6", KVM: "kvm_x"}, Program: Program{"smolvmm 1", 8 << 20, 6 << 20}}
	s.Add(Figure{ID: "boot/first", What: "start → first | instruction", Unit: "ms", Better: better, Series: []Series{
		{Subject: Ours, Values: append(times(ours, 0.02, n), math.NaN())},
		{Subject: "QEMU", Values: append(times(qemu, 0.02, n), 99)},
		{Subject: "broken", Failed: 3, Failure: "it\nbroke"},
		{Subject: "absent"},
	}})
	s.Add(Figure{ID: "boot/none", Series: []Series{{Subject: Ours, Values: Values{math.NaN()}}}})
	s.Stacks = []Stack{{ID: "boot/parts", Title: "parts", Unit: "ms", Bars: []Bar{{Ours, []Part{{"a", 1}, {"b", 2}}}}}}
	s.Curves = []Curve{{ID: "density/time", Title: "t", X: "n", Y: "ms", Lines: []Line{{Ours, [][2]float64{{1, 2}, {2, 3}}}}}}
	return s
}

func TestSet(t *testing.T) {
	s := made(5, 50, 20, Less)
	if len(s.Figures) != 1 || len(s.Figures[0].Series) != 3 {
		t.Fatalf("%+v", s.Figures)
	}
	x := s.Figures[0].Of(Ours)
	if i := x.Ratios["QEMU"]; x.Summary.N != 20 || math.Abs(i.Value-0.1) > 0.001 || i.Low > i.Value || i.High < i.Value {
		t.Errorf("%+v", x)
	}
	var doc bytes.Buffer
	if err := s.JSON(&doc); err != nil {
		t.Fatal(err)
	}
	got, err := Read(&doc)
	if err != nil {
		t.Fatal(err)
	}
	if y := got.Figures[0].Of(Ours); len(y.Values) != 21 || !math.IsNaN(y.Values[20]) || y.Values[3] != x.Values[3] {
		t.Errorf("read back: %v", y.Values)
	}
	var text bytes.Buffer
	if err := s.CSV(&text); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&text).ReadAll()
	if err != nil || len(rows) != 1+20+21 || strings.Join(rows[0], " ") != "figure unit better subject round value" || strings.Join(rows[1], " ") != "boot/first ms less smolvmm 1 5" {
		t.Errorf("%d lines, %v: %v", len(rows), err, rows[:2])
	}
}

func TestMarkdown(t *testing.T) {
	s := made(5, 50, 20, Less)
	s.Goals = []Goal{{What: "of QEMU", Bound: 0.3, Figure: stats.Interval{Value: 0.1, Low: 0.09, High: 0.11}, Verdict: stats.Reached}}
	s.Others = 1
	s.Warnings = s.Doubts()
	files, ids := s.Plots()
	var b strings.Builder
	s.Markdown(&b, ids)
	for _, want := range []string{
		"| | median | p10–p90 | p99 | spread | n | smolvmm ÷ it |\n|---|---:|---:|---:|---:|---:|---:|\n",
		"| smolvmm | 5.", "| broken | none of 3 tries | | | | 0 | |\n", "| QEMU | 50.", " 0.100 [",
		"| of QEMU | 0.300  | 0.100 [0.090, 0.110] | reached |", "others used 1.00 of a processor", "3 failed, the first: it broke",
		"![boot/parts/phases](boot-parts-phases.svg)", "![boot/first/cdf](boot-first-cdf.svg)",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "| broken") && strings.Count(line, "|") != 8 {
			t.Errorf("other columns than the head: %s", line)
		}
	}
	if len(files) != 3 {
		t.Errorf("%d plots", len(files))
	}
	for name, svg := range files {
		d := xml.NewDecoder(bytes.NewReader(svg))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

func TestAddGoal(t *testing.T) {
	var s Set
	s.AddGoal("few", 1, "", stats.Interval{Value: 0.5, Low: 0.5, High: 0.5}, 1)
	s.AddGoal("many", 1, "", stats.Interval{Value: 0.5, Low: 0.5, High: 0.5}, 10)
	if s.Goals[0].Verdict != stats.Unsettled || s.Goals[1].Verdict != stats.Reached {
		t.Errorf("%+v", s.Goals)
	}
}

func TestDoubts(t *testing.T) {
	for _, c := range []struct {
		s    *Set
		want string
	}{
		{made(5, 50, 20, Less), ""},
		{made(50, 50, 20, Less), "too noisy, or too few rounds, for a difference from QEMU"},
		{made(5, 50, 1, Less), "1 series have one value each"},
	} {
		if got := strings.Join(c.s.Doubts(), "\n"); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, after *Set
		peers         []string
		want          Verdict
		peer          string
	}{
		{"alike", made(5, 50, 20, Less), made(5.05, 50, 20, Less), []string{"QEMU"}, Same, "QEMU"},
		{"a fifth slower", made(5, 50, 20, Less), made(6, 50, 20, Less), []string{"QEMU"}, Slower, "QEMU"},
		{"within the tolerance", made(5, 50, 20, Less), made(5.2, 50, 20, Less), nil, Same, ""},
		{"faster", made(5, 50, 20, Less), made(4, 50, 20, Less), nil, Faster, ""},
		{"the machine slower", made(5, 50, 20, Less), made(10, 100, 20, Less), []string{"floor", "QEMU"}, Same, "QEMU"},
		{"by the clock", made(5, 50, 20, Less), made(10, 100, 20, Less), nil, Slower, ""},
		{"more is better, less came", made(5, 50, 20, More), made(4, 50, 20, More), nil, Slower, ""},
		{"more is better, more came", made(5, 50, 20, More), made(6, 50, 20, More), nil, Faster, ""},
		{"too few", made(5, 50, 2, Less), made(10, 50, 2, Less), nil, Same, ""},
		{"gone", made(5, 50, 20, Less), &Set{}, nil, Gone, ""},
		{"new", &Set{}, made(5, 50, 20, Less), nil, Added, ""},
	} {
		got := Compare(c.before, c.after, c.peers, 0.05)
		if len(got.Changes) != 1 || got.Changes[0].Verdict != c.want || got.Changes[0].Peer != c.peer {
			t.Errorf("%s: %+v", c.name, got.Changes)
		}
		if want := map[bool]int{true: 1}[c.want == Slower]; got.Slowdowns() != want {
			t.Errorf("%s: %d slowdowns", c.name, got.Slowdowns())
		}
		var b strings.Builder
		got.Markdown(&b)
		if !strings.Contains(b.String(), string(c.want)) {
			t.Errorf("%s: %s", c.name, b.String())
		}
	}
	detail, slower := made(5, 50, 20, Less), made(9, 50, 20, Less)
	detail.Figures[0].Detail, slower.Figures[0].Detail = true, true
	if got := Compare(detail, slower, nil, 0.05); len(got.Changes) != 0 {
		t.Errorf("a detail was judged: %+v", got.Changes)
	}
	other := made(5, 50, 20, Less)
	other.Host.CPU = "another"
	if got := Compare(made(5, 50, 20, Less), other, nil, 0.05); len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "different machines") {
		t.Error(got.Warnings)
	}
}

func TestRead(t *testing.T) {
	for doc, want := range map[string]string{
		"":              "no result",
		"[]":            "no result",
		`{"version":9}`: "version 9",
		`{"version":1,"figures":[{"id":"x","better":"?"}]}`:                                       "neither",
		`{"version":1,"figures":[{"id":"x","better":"less","series":[{"values":[null,1,"a"]}]}]}`: "no result",
	} {
		if _, err := Read(strings.NewReader(doc)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", doc, err)
		}
	}
}

// FuzzRead: whatever a file holds, it is refused or can be compared and shown.
func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	if err := made(5, 50, 6, Less).JSON(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(`{"version":1,"figures":[{"id":"x","better":"more","series":[{"subject":"smolvmm","values":[null,0,-1,1e308],"summary":{"n":4}}]}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		s, err := Read(bytes.NewReader(doc))
		if err != nil {
			return
		}
		c := Compare(made(5, 50, 6, Less), s, []string{"QEMU"}, 0.05)
		c.Markdown(io.Discard)
		Compare(s, s, nil, 0.05).Markdown(io.Discard)
		s.Markdown(io.Discard, nil)
		s.Doubts()
		s.Plots()
	})
}
