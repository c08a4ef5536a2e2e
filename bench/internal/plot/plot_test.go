package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// parse reads an SVG, and gives its elements with what is in them.
func parse(t *testing.T, svg []byte) (names []string, text string) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(svg))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return names, text
		}
		if err != nil {
			t.Fatalf("no XML: %v\n%s", err, svg)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			names = append(names, tok.Name.Local)
			for _, a := range tok.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("%s has %s=%q", tok.Name.Local, a.Name.Local, a.Value)
				}
			}
		case xml.CharData:
			text += string(tok)
		}
	}
}

func TestPlots(t *testing.T) {
	odd := `a < b & "c"`
	for _, c := range []struct {
		name  string
		svg   []byte
		count map[string]int
		has   []string
	}{
		{"stacked", Stacked("phases", "ms", []Bar{
			{"smolvmm", []Part{{"exec to main", 1.2}, {"KVM", 0.5}, {"kernel", 2}}}, {odd, []Part{{"kernel", 40}, {"other", -1}, {"odd", math.NaN()}}},
		}), map[string]int{"rect": 1 + 6 + 5, "svg": 1}, []string{odd, "exec to main", "kernel: 40 ms", "other"}},
		{"cdf", CDF("start", "ms", []Line{{"smolvmm", Distribution([]float64{3, 1, 2})}, {"QEMU", Distribution([]float64{30, 10, 20})}}),
			map[string]int{"polyline": 2, "rect": 3}, []string{"smolvmm", "QEMU", "part of the runs", "30"}},
		{"apart", CDF("start", "ms", []Line{{"smolvmm", Distribution([]float64{3, 4, 0})}, {"gokvm", Distribution([]float64{130, 410, 120})}}),
			map[string]int{"polyline": 2}, []string{"ms, logarithmic", "1000"}},
		{"lines", Lines("density", "machines", "MiB", []Line{{"smolvmm", [][2]float64{{1, 5}, {50, 260}, {100, 530}, {math.Inf(1), 1}}}}),
			map[string]int{"polyline": 1}, []string{"machines", "MiB", "100", "600"}},
		{"empty", Lines("nothing", "x", "y", nil), map[string]int{"polyline": 0}, []string{"nothing"}},
		{"zeros", Lines("zeros", "x", "y", []Line{{"z", [][2]float64{{0, 0}}}}), map[string]int{"polyline": 1}, nil},
		{"huge", CDF("huge", "ms", []Line{{"h", Distribution([]float64{1e300, math.MaxFloat64})}}), map[string]int{"polyline": 1}, nil},
		{"tiny", Stacked("tiny", "ms", []Bar{{"t", []Part{{"p", 5e-324}}}}), map[string]int{"svg": 1}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			names, text := parse(t, c.svg)
			for n, want := range c.count {
				got := 0
				for _, x := range names {
					if x == n {
						got++
					}
				}
				if got != want {
					t.Errorf("%d of %s, want %d", got, n, want)
				}
			}
			for _, want := range c.has {
				if !strings.Contains(text, want) {
					t.Errorf("no %q", want)
				}
			}
			if c.count["svg"] == 0 && c.name != "cdf" && c.name != "lines" && c.name != "apart" {
				return
			}
			golden := filepath.Join("testdata", c.name+".svg")
			if *update {
				if err := os.WriteFile(golden, c.svg, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if c.name == "tiny" {
				return
			}
			if want, err := os.ReadFile(golden); err != nil || !bytes.Equal(want, c.svg) {
				t.Errorf("another picture than %s (%v): look at it, then -update", golden, err)
			}
		})
	}
}

func TestDistribution(t *testing.T) {
	if got := Distribution([]float64{2, 1}); !slices.Equal(got, [][2]float64{{1, 0}, {1, 0.5}, {2, 0.5}, {2, 1}}) {
		t.Error(got)
	}
}

func TestAxis(t *testing.T) {
	for greatest, want := range map[float64][]float64{
		10: {0, 2, 4, 6, 8, 10}, 9.5: {0, 2, 4, 6, 8, 10}, 0.5: {0, 0.1, 0.2, 0.3, 0.4, 0.5}, 130: {0, 50, 100, 150}, 0: {0, 0.2, 0.4, 0.6, 0.8, 1},
	} {
		a := newAxis(greatest, 0, 100)
		got := a.ticks()
		if len(got) != len(want) {
			t.Errorf("%v: %v, want %v", greatest, got, want)
			continue
		}
		for i := range got {
			if math.Abs(got[i]-want[i]) > 1e-9 {
				t.Errorf("%v: %v, want %v", greatest, got, want)
			}
		}
		if a.at(a.top) != 100 || a.top < greatest {
			t.Errorf("%v: the axis ends at %v", greatest, a.top)
		}
	}
}

func TestLogAxis(t *testing.T) {
	a := logAxis(3, 410, 0, 100)
	if got := a.ticks(); !slices.Equal(got, []float64{1, 10, 100, 1000}) {
		t.Error(got)
	}
	for v, want := range map[float64]float64{0: 0, 0.5: 0, 1: 0, 1000: 100, 1e9: 100} {
		if got := a.at(v); math.Abs(got-want) > 1e-9 {
			t.Errorf("%v lies at %v, want %v", v, got, want)
		}
	}
	if at := a.at(math.Sqrt(1000)); math.Abs(at-50) > 1e-9 {
		t.Errorf("the middle lies at %v", at)
	}
}
