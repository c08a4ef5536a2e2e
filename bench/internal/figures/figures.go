// Package figures is what measurements come to: values by round, what they show,
// and how they are written for people and for programs.
package figures

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/machine"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// Ours is the name of the program that all is about.
const Ours = "smolvmm"

// Version of the JSON document.
const Version = 1

// Set is all that one run measured.
type Set struct {
	Version  int          `json:"version"`
	When     time.Time    `json:"when"`
	Host     machine.Host `json:"host"`
	Program  Program      `json:"program"`
	Others   float64      `json:"others_cpus"` // processor time of others while measuring, in processors
	Figures  []Figure     `json:"figures"`
	Stacks   []Stack      `json:"stacks,omitempty"`
	Curves   []Curve      `json:"curves,omitempty"`
	Goals    []Goal       `json:"goals,omitempty"`
	Notes    []string     `json:"notes,omitempty"`  // what a table is made of, for who reads it
	Absent   []string     `json:"absent,omitempty"` // what was not measured, and why
	Warnings []string     `json:"warnings,omitempty"`
}

// Program is the smolvmm that was measured.
type Program struct {
	Version  string `json:"version"`
	Bytes    int64  `json:"bytes"`
	Stripped int64  `json:"stripped_bytes"` // without symbols and what debuggers read
}

// Better says which way a figure gets better.
type Better string

const (
	Less Better = "less"
	More Better = "more"
)

// Figure is something measured of several programs in turn.
type Figure struct {
	ID     string `json:"id"` // such as boot/first-instruction; the suite is before the slash
	What   string `json:"what"`
	Unit   string `json:"unit"`
	Better Better `json:"better"`
	// Detail says that it explains another figure: no comparison judges it.
	Detail bool     `json:"detail,omitempty"`
	Series []Series `json:"series"`
}

// Series are the values of one program, by round. NaN: this round gave none.
type Series struct {
	Subject string        `json:"subject"`
	Values  Values        `json:"values"`
	Failed  int           `json:"failed,omitempty"`
	Failure string        `json:"failure,omitempty"` // the first
	Summary stats.Summary `json:"summary"`
	// Ratios are this program's median in parts of another's, by its name.
	Ratios map[string]stats.Interval `json:"ratios,omitempty"`
}

// Values are numbers of which some are not there: NaN here, null in JSON.
type Values []float64

// MarshalJSON writes null where there is none.
func (v Values) MarshalJSON() ([]byte, error) {
	out := []byte{'['}
	for i, x := range v {
		if i > 0 {
			out = append(out, ',')
		}
		if math.IsNaN(x) || math.IsInf(x, 0) {
			out = append(out, "null"...)
			continue
		}
		b, err := json.Marshal(x)
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	return append(out, ']'), nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (v *Values) UnmarshalJSON(b []byte) error {
	var in []*float64
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*v = make(Values, len(in))
	for i, x := range in {
		(*v)[i] = math.NaN()
		if x != nil {
			(*v)[i] = *x
		}
	}
	return nil
}

// There are the values that are.
func (v Values) There() []float64 {
	return slices.DeleteFunc(slices.Clone(v), func(x float64) bool { return math.IsNaN(x) })
}

// Both are the values of the rounds in which x and y have one.
func Both(x, y Values) (a, b []float64) {
	for i := range min(len(x), len(y)) {
		if !math.IsNaN(x[i]) && !math.IsNaN(y[i]) {
			a, b = append(a, x[i]), append(b, y[i])
		}
	}
	return a, b
}

// Stack is a bar for each program, of parts that follow each other.
type Stack struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	Unit  string `json:"unit"`
	Bars  []Bar  `json:"bars"`
}

// Bar is a program's.
type Bar struct {
	Name  string `json:"name"`
	Parts []Part `json:"parts"`
}

// Part is a piece of a bar.
type Part struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
}

// Curve is a y for each x, a line for each program.
type Curve struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	X     string `json:"x"`
	Y     string `json:"y"`
	Lines []Line `json:"lines"`
}

// Line is a program's.
type Line struct {
	Name   string       `json:"name"`
	Points [][2]float64 `json:"points"`
}

// Goal is a bound and what the runs say of it.
type Goal struct {
	What    string         `json:"what"`
	Bound   float64        `json:"bound"`
	Unit    string         `json:"unit,omitempty"`
	Figure  stats.Interval `json:"figure"`
	Verdict stats.Verdict  `json:"verdict"`
}

// Certain is the n of what was not drawn from rounds, and is the same each time.
const Certain = math.MaxInt

// AddGoal holds a figure of n values against a bound that must not be passed. Few
// values settle nothing, however narrow their interval is.
func (s *Set) AddGoal(what string, bound float64, unit string, i stats.Interval, n int) {
	v := stats.Judge(i, bound)
	if n < leastRounds {
		v = stats.Unsettled
	}
	s.Goals = append(s.Goals, Goal{what, bound, unit, i, v})
}

// Of is the series of a program, nil if there is none.
func (f *Figure) Of(subject string) *Series {
	for i := range f.Series {
		if f.Series[i].Subject == subject {
			return &f.Series[i]
		}
	}
	return nil
}

// Figure finds one by its ID, nil if there is none.
func (s *Set) Figure(id string) *Figure {
	for i := range s.Figures {
		if s.Figures[i].ID == id {
			return &s.Figures[i]
		}
	}
	return nil
}

// noisySpread: p90 so far above p10, in parts of the median, that single figures
// say little.
const noisySpread = 0.3

// Add takes a figure in, with what its values come to. Series without a value or a
// failure are left out; a figure that nobody has is not taken.
func (s *Set) Add(f Figure) {
	f.Series = slices.DeleteFunc(f.Series, func(x Series) bool { return len(x.Values.There()) == 0 && x.Failed == 0 })
	if len(f.Series) == 0 {
		return
	}
	for i := range f.Series {
		x := &f.Series[i]
		x.Summary = stats.Summarise(x.Values.There())
		for j := range f.Series {
			a, b := Both(x.Values, f.Series[j].Values)
			if i != j && len(a) > 0 && stats.Summarise(b).Median != 0 {
				if x.Ratios == nil {
					x.Ratios = map[string]stats.Interval{}
				}
				x.Ratios[f.Series[j].Subject] = stats.Compare(a, b, stats.Ratio)
			}
		}
	}
	s.Figures = append(s.Figures, f)
}

// Doubts tells what makes the figures doubtful.
func (s *Set) Doubts() (out []string) {
	if s.Others > machine.NoisyOthers {
		out = append(out, fmt.Sprintf("others used %.2f of a processor while this measured: times are too long, and ratios uncertain", s.Others))
	}
	single := 0
	for _, f := range s.Figures {
		if f.Detail {
			continue
		}
		var wide []string
		for _, x := range f.Series {
			if sp := x.Summary.Spread(); x.Summary.N > 1 && sp > noisySpread {
				wide = append(wide, fmt.Sprintf("%s by %.0f %%", x.Subject, 100*sp))
			}
			if x.Summary.N == 1 {
				single++
			}
		}
		if len(wide) > 0 {
			out = append(out, fmt.Sprintf("%s: p10 to p90 spans much of the median: %s", f.ID, strings.Join(wide, ", ")))
		}
		x := f.Of(Ours)
		if x == nil {
			continue
		}
		for _, y := range f.Series {
			if i, ok := x.Ratios[y.Subject]; ok && i.Low <= 1 && i.High >= 1 && x.Summary.N > 1 {
				out = append(out, fmt.Sprintf("%s: too noisy, or too few rounds, for a difference from %s: %s", f.ID, y.Subject, i))
			}
		}
	}
	if single > 0 {
		out = append(out, fmt.Sprintf("%d series have one value each, which says nothing of how sure it is: more rounds (-n) do", single))
	}
	for _, g := range s.Goals {
		if g.Verdict == stats.Unsettled {
			out = append(out, g.What+": too noisy, or too few rounds, for this bound")
		}
	}
	return out
}

// Read takes a document as Write makes it. It trusts none of it.
func Read(r io.Reader) (*Set, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("larger than %d MiB: this is no result of smolvmm bench", maxDocument>>20)
	}
	var s Set
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("no result of smolvmm bench: %w", err)
	}
	if s.Version != Version {
		return nil, fmt.Errorf("version %d of the document, not %d: measure again with this smolvmm", s.Version, Version)
	}
	for _, f := range s.Figures {
		if f.Better != Less && f.Better != More {
			return nil, fmt.Errorf("figure %q: %q is neither less nor more", f.ID, f.Better)
		}
	}
	return &s, nil
}

// maxDocument bounds a document: a thousand rounds of every figure are some MiB.
const maxDocument = 64 << 20

// JSON writes the document.
func (s *Set) JSON(w io.Writer) error {
	s.Version = Version
	b, err := json.MarshalIndent(s, "", " ")
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	return err
}
