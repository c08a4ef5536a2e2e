package figures

import (
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/bench/internal/plot"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// CSV writes every value: one line for each round of a program's.
func (s *Set) CSV(w io.Writer) error {
	c := csv.NewWriter(w)
	_ = c.Write([]string{"figure", "unit", "better", "subject", "round", "value"})
	for _, f := range s.Figures {
		for _, x := range f.Series {
			for i, v := range x.Values {
				if !math.IsNaN(v) {
					_ = c.Write([]string{f.ID, f.Unit, string(f.Better), x.Subject, strconv.Itoa(i + 1), strconv.FormatFloat(v, 'g', -1, 64)})
				}
			}
		}
	}
	c.Flush()
	return c.Error()
}

// cell keeps text within its column.
func cell(s string) string { return strings.NewReplacer("|", `\|`, "\n", " ", "\r", " ").Replace(s) }

// Markdown writes the tables. plots are the files beside it, by the ID of what
// they show.
func (s *Set) Markdown(w io.Writer, plots map[string]string) {
	fmt.Fprintf(w, "# Measured %s\n\nOn %s.", s.When.Format("2006-01-02 15:04 MST"), s.Host)
	if s.Program.Version != "" {
		fmt.Fprintf(w, " %s, %.1f MiB (%.1f stripped).", s.Program.Version, float64(s.Program.Bytes)/(1<<20), float64(s.Program.Stripped)/(1<<20))
	}
	if s.Host.QEMU != "" {
		fmt.Fprintf(w, " %s.", s.Host.QEMU)
	}
	fmt.Fprintf(w, " Brackets: 95 %% confidence interval. Others used %.2f processors meanwhile.\n", s.Others)
	suite := ""
	for _, f := range s.Figures {
		if name, _, _ := strings.Cut(f.ID, "/"); name != suite {
			suite = name
			fmt.Fprintf(w, "\n## %s\n", suite)
			s.pictures(w, suite, plots)
		}
		f.markdown(w)
	}
	bullets(w, "What the parts are", s.Notes)
	if len(s.Goals) > 0 {
		fmt.Fprint(w, "\n## Goals\n\n| goal | bound | measured | |\n|---|---:|---:|---|\n")
		for _, g := range s.Goals {
			fmt.Fprintf(w, "| %s | %s %s | %s | %s |\n", cell(g.What), stats.Digits(g.Bound), g.Unit, g.Figure, g.Verdict)
		}
	}
	bullets(w, "Doubts", s.Warnings)
	bullets(w, "Not measured", s.Absent)
	var failed []string
	for _, f := range s.Figures {
		for _, x := range f.Series {
			if x.Failed > 0 {
				failed = append(failed, fmt.Sprintf("%s: %s: %d failed, the first: %s", f.ID, x.Subject, x.Failed, x.Failure))
			}
		}
	}
	bullets(w, "Failures", failed)
}

func (s *Set) pictures(w io.Writer, suite string, plots map[string]string) {
	var ids []string
	for id := range plots {
		if strings.HasPrefix(id, suite+"/") {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		fmt.Fprintf(w, "\n![%s](%s)\n", id, plots[id])
	}
}

func bullets(w io.Writer, head string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(w, "\n## %s\n\n", head)
	for _, l := range lines {
		fmt.Fprintf(w, "- %s\n", strings.ReplaceAll(l, "\n", " "))
	}
}

// markdown writes one table: all programs, and the parts that smolvmm's is of each.
func (f *Figure) markdown(w io.Writer) {
	fmt.Fprintf(w, "\n**%s** (%s, %s is better)\n\n", f.What, f.Unit, f.Better)
	ours := f.Of(Ours)
	head, line := "| | median | p10–p90 | p99 | spread | n |", "|---|---:|---:|---:|---:|---:|"
	ratios := ours != nil && len(ours.Ratios) > 0
	if ratios {
		head, line = head+" smolvmm ÷ it |", line+"---:|"
	}
	fmt.Fprintf(w, "%s\n%s\n", head, line)
	for _, x := range f.Series {
		s := x.Summary
		if s.N == 0 {
			fmt.Fprintf(w, "| %s | none of %d tries | | | | 0 |", cell(x.Subject), x.Failed)
		} else {
			fmt.Fprintf(w, "| %s | %s | %s–%s | %s | %.0f %% | %d |", cell(x.Subject),
				stats.Digits(s.Median), stats.Digits(s.P10), stats.Digits(s.P90), stats.Digits(s.P99), 100*s.Spread(), s.N)
		}
		if ratios {
			if i, ok := ours.Ratios[x.Subject]; ok {
				fmt.Fprintf(w, " %s |", i)
			} else {
				fmt.Fprint(w, " |")
			}
		}
		fmt.Fprintln(w)
	}
}

// Plots draws all there is to draw, by file name; ids gives what each shows.
func (s *Set) Plots() (files map[string][]byte, ids map[string]string) {
	files, ids = map[string][]byte{}, map[string]string{}
	add := func(id, kind string, svg []byte) {
		name := strings.ReplaceAll(id, "/", "-") + "-" + kind + ".svg"
		files[name], ids[id+"/"+kind] = svg, name
	}
	for _, st := range s.Stacks {
		var bars []plot.Bar
		for _, b := range st.Bars {
			var parts []plot.Part
			for _, p := range b.Parts {
				parts = append(parts, plot.Part(p))
			}
			bars = append(bars, plot.Bar{Name: b.Name, Parts: parts})
		}
		add(st.ID, "phases", plot.Stacked(st.Title, st.Unit, bars))
	}
	for _, c := range s.Curves {
		add(c.ID, "curve", plot.Lines(c.Title, c.X, c.Y, lines(c.Lines)))
	}
	for _, f := range s.Figures {
		if f.Detail || f.Unit != "ms" && f.Unit != "µs" {
			continue
		}
		var ls []plot.Line
		for _, x := range f.Series {
			if x.Summary.N >= minCDF {
				ls = append(ls, plot.Line{Name: x.Subject, Points: plot.Distribution(x.Values.There())})
			}
		}
		if len(ls) > 0 {
			add(f.ID, "cdf", plot.CDF(f.What, f.Unit, ls))
		}
	}
	return files, ids
}

// minCDF is how many values a distribution is drawn of at least.
const minCDF = 5

func lines(in []Line) (out []plot.Line) {
	for _, l := range in {
		out = append(out, plot.Line(l))
	}
	return out
}
