package boot

import (
	"fmt"
	"io"
	"strings"

	"github.com/smolvmm/smolvmm/bench/internal/machine"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// row is one subject's figures for a metric.
type row struct {
	Subject string          `json:"subject"`
	Summary stats.Summary   `json:"summary"`
	QEMU    *stats.Interval `json:"ratio_to_qemu,omitempty"`
	Floor   *stats.Interval `json:"ratio_to_floor,omitempty"`
	Over    *stats.Interval `json:"over_floor,omitempty"` // difference, in the metric's unit
	Failed  int             `json:"failed,omitempty"`
}

// table is a metric over all subjects.
type table struct {
	What   string `json:"what"`
	Metric string `json:"metric"`
	Unit   string `json:"unit"`
	Floor  string `json:"floor,omitempty"` // the floor that rows are compared with
	Rows   []row  `json:"rows"`
}

// tabulate makes a table of an experiment's series. Subjects without the figure are left out unless they failed.
func tabulate(what string, xs []*Series, m metric) table {
	t := table{What: what, Metric: m.name, Unit: m.unit}
	qemu, floor := find(xs, nameQEMU), floorOf(xs, m)
	if floor != nil {
		t.Floor = floor.Subject.name
	}
	for _, x := range xs {
		v := x.values(m)
		if len(v) == 0 && x.failed == 0 {
			continue
		}
		r := row{Subject: x.Subject.name, Summary: stats.Summarise(v), Failed: x.failed}
		with := func(y *Series, f func(a, b float64) float64) *stats.Interval {
			if y == nil || y == x || len(v) == 0 {
				return nil
			}
			a, b := pairs(x, y, m)
			if len(a) == 0 {
				return nil
			}
			i := stats.Compare(a, b, f)
			return &i
		}
		r.QEMU, r.Floor, r.Over = with(qemu, stats.Ratio), with(floor, stats.Ratio), with(floor, stats.Difference)
		t.Rows = append(t.Rows, r)
	}
	return t
}

// floorOf is the floor to compare with: the C program's where there is one. Which it is must not hang on the figures.
func floorOf(xs []*Series, m metric) *Series {
	for _, name := range []string{nameFloorC, nameFloorGo} {
		if x := find(xs, name); x != nil && len(x.values(m)) > 0 {
			return x
		}
	}
	return nil
}

func (t table) row(name string) *row {
	for i := range t.Rows {
		if t.Rows[i].Subject == name {
			return &t.Rows[i]
		}
	}
	return nil
}

// markdown writes the table.
func (t table) markdown(w io.Writer) {
	fmt.Fprintf(w, "\n**%s: %s** (%s)\n\n", t.What, t.Metric, t.Unit)
	hasQEMU, hasFloor := false, false
	for _, r := range t.Rows {
		hasQEMU = hasQEMU || r.QEMU != nil
		hasFloor = hasFloor || r.Floor != nil
	}
	head, line := "| | median | p10–p90 |", "|---|---:|---:|"
	if hasQEMU {
		head, line = head+" ÷ QEMU |", line+"---:|"
	}
	if hasFloor {
		head, line = head+fmt.Sprintf(" ÷ %s | over it |", t.Floor), line+"---:|---:|"
	}
	fmt.Fprintf(w, "%s\n%s\n", head, line)
	for _, r := range t.Rows {
		if r.Summary.N == 0 {
			fmt.Fprintf(w, "| %s | none of %d starts came that far |", r.Subject, r.Failed)
		} else {
			name := r.Subject
			if r.Failed > 0 {
				name += fmt.Sprintf(" (%d starts failed)", r.Failed)
			}
			fmt.Fprintf(w, "| %s | %s | %s–%s |", name, stats.Digits(r.Summary.Median), stats.Digits(r.Summary.P10), stats.Digits(r.Summary.P90))
		}
		if r.Summary.N == 0 {
			fmt.Fprint(w, " |")
		}
		if hasQEMU {
			fmt.Fprintf(w, " %s |", cell(r.QEMU))
		}
		if hasFloor {
			fmt.Fprintf(w, " %s | %s |", cell(r.Floor), cell(r.Over))
		}
		fmt.Fprintln(w)
	}
}

// cell is the estimate with its interval, for a table.
func cell(i *stats.Interval) string {
	if i == nil {
		return ""
	}
	return i.String()
}

// Goal is a bound and what the runs say of it.
type Goal struct {
	What    string         `json:"what"`
	Bound   float64        `json:"bound"`
	Unit    string         `json:"unit,omitempty"`
	Figure  stats.Interval `json:"figure"`
	Verdict stats.Verdict  `json:"verdict"`
}

func newGoal(what string, i *stats.Interval, bound float64, unit string) []Goal {
	if i == nil {
		return nil
	}
	return []Goal{{what, bound, unit, *i, stats.Judge(*i, bound)}}
}

// goals judges what the tables allow to judge. The bounds of the start are for a machine's own KVM: in emulation every
// system call and page fault of a process is dear, which is not what they are about.
func goals(ts []table, lab bool) (out []Goal) {
	for _, t := range ts {
		r := t.row(nameOurs)
		if r == nil || r.Summary.N == 0 {
			continue
		}
		switch t.Metric {
		case toMark.name:
			if t.What == whatTiny && !lab {
				out = append(out, newGoal(t.What+": start → first guest instruction, over the "+t.Floor, r.Over, goalOverFloor, "ms")...)
				out = append(out, newGoal(t.What+": start → first guest instruction ÷ QEMU", r.QEMU, goalQEMU, "")...)
			}
		case ofKernel.name:
			out = append(out, newGoal(t.What+": kernel start → init ÷ QEMU", r.QEMU, goalKernelQEMU, "")...)
		case toInit.name:
			out = append(out, newGoal(t.What+": process start → init ÷ QEMU", r.QEMU, goalInitQEMU, "")...)
		case dirty.name:
			i := stats.Interval{Value: r.Summary.Median, Low: r.Summary.P10, High: r.Summary.P90}
			out = append(out, newGoal(t.What+": private dirty memory", &i, goalDirty, "MiB")...)
		}
	}
	return out
}

func (g Goal) String() string {
	unit := g.Unit
	if unit != "" {
		unit = " " + unit
	}
	return fmt.Sprintf("%s: %s%s, at most %s%s: %s", g.What, g.Figure, unit, stats.Digits(g.Bound), unit, g.Verdict)
}

// Limits of what counts as a quiet machine.
const (
	// noisySpread: p90 so far above p10, in parts of the median, that single figures say little.
	noisySpread = 0.3
	// machine.NoisyOthers is processor time of others while measuring, in processors.
	noisyOthers = 0.15
)

// warnings tells what makes the figures doubtful.
func warnings(ts []table, gs []Goal, busy float64) (out []string) {
	if busy > machine.NoisyOthers {
		out = append(out, fmt.Sprintf("others used %.2f of a processor while this measured: the times are too long, and the ratios uncertain", busy))
	}
	for _, t := range ts {
		var wide []string
		for _, r := range t.Rows {
			if s := r.Summary; t.Unit == "ms" && s.N > 0 && s.P90-s.P10 > noisySpread*s.Median {
				wide = append(wide, fmt.Sprintf("%s %.0f %%", r.Subject, 100*(s.P90-s.P10)/s.Median))
			}
			if i := r.QEMU; i != nil && i.Low <= 1 && i.High >= 1 {
				out = append(out, fmt.Sprintf("%s, %s: no difference from QEMU is shown, the interval %s holds 1", t.Metric, r.Subject, cell(i)))
			}
		}
		if len(wide) > 0 {
			out = append(out, fmt.Sprintf("%s: p10 to p90 spans much of the median: %s", t.Metric, strings.Join(wide, ", ")))
		}
	}
	for _, g := range gs {
		if g.Verdict == stats.Unsettled {
			out = append(out, fmt.Sprintf("%s: the machine is too noisy or the runs too few for this bound", g.What))
		}
	}
	return out
}
