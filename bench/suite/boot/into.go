package boot

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/internal/smaps"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// figureOf is a metric of an experiment, as a set has it.
type figureOf struct {
	id, what string // what: the experiment's
	metric   metric
}

func memoryMetric(name string, of func(*smaps.Memory) uint64) metric {
	return metric{name, "MiB", func(s *Sample) (float64, bool) { return memoryOf(s, of) }}
}

// bootFigures are those of the starts, those of memory apart.
func bootFigures() []figureOf {
	ofCPU := metric{"processor time of the monitor and its guest, to the first guest instruction", "ms", func(s *Sample) (float64, bool) { return ms(s.CPU), s.CPU > 0 }}
	faults := metric{"page faults of the monitor, to the first guest instruction", "faults", func(s *Sample) (float64, bool) { return float64(s.Faults), s.Faults > 0 }}
	return []figureOf{
		{"boot/first-instruction", whatTiny, toMark}, {"boot/gone", whatEnding, toEnd}, {"boot/cpu", whatTiny, ofCPU}, {"boot/page-faults", whatTiny, faults},
		{"boot/version", whatVersion, toVersion},
		{"boot/kernel-first-instruction", whatFull, toMark}, {"boot/kernel-first-console-byte", whatFull, toConsole},
		{"boot/kernel-to-init", whatFull, ofKernel}, {"boot/init", whatFull, toInit},
	}
}

func memoryFigures() []figureOf {
	pss := memoryMetric("proportional memory of the monitor (PSS), guest pages left out", func(m *smaps.Memory) uint64 { return m.PSS })
	guest := memoryMetric("guest pages touched", func(m *smaps.Memory) uint64 { return m.Guest })
	return []figureOf{
		{"memory/private-dirty", whatTiny, dirty}, {"memory/rss", whatTiny, rss}, {"memory/pss", whatTiny, pss}, {"memory/guest", whatTiny, guest},
		{"memory/init-private-dirty", whatFull, dirty}, {"memory/init-rss", whatFull, rss}, {"memory/init-guest", whatFull, guest},
	}
}

// Starts puts what was measured of starts into a set.
func (r *Report) Starts(to *figures.Set) {
	r.into(to, bootFigures(), false)
	r.into(to, kernelFigures(), true)
	for _, b := range []struct {
		id       string
		subjects []string
		bound    float64
		unit     string
		what     string
		f        func(a, b float64) float64
	}{
		{"boot/first-instruction", []string{nameFloorC}, goalOverFloor, "ms", "start → first guest instruction, over the floor in C", stats.Difference},
		{"boot/first-instruction", []string{nameQEMU}, goalQEMU, "", "start → first guest instruction, of QEMU's", stats.Ratio},
		{"boot/init", []string{nameQEMU}, goalInitQEMU, "", "start → NetBSD's init, of QEMU's", stats.Ratio},
		{"boot/init", []string{nameFC}, goalInitFC, "", "start → NetBSD's init, of Firecracker's", stats.Ratio},
	} {
		if r.Host.Lab && strings.HasSuffix(b.id, "instruction") {
			continue // as goals
		}
		f := to.Figure(b.id)
		if f == nil || f.Of(nameOurs) == nil {
			continue
		}
		for _, name := range b.subjects {
			if y := f.Of(name); y != nil {
				v, w := figures.Both(f.Of(nameOurs).Values, y.Values)
				if len(v) > 0 {
					i := stats.Compare(v, w, b.f)
					to.AddGoal(b.what, b.bound, b.unit, i, len(v))
				}
			}
		}
	}
}

// The goals that smolvmm sets itself.
const (
	goalOverFloor  = 2.0  // ms, start → first guest instruction
	goalQEMU       = 0.30 // of QEMU's, the same
	goalKernelQEMU = 1.0  // of QEMU's, the kernel's first instruction → init
	goalInitQEMU   = 0.7  // of QEMU's, start → init
	goalInitFC     = 1.0  // of Firecracker's, start → init
	goalDirty      = 6.0  // MiB, without a network
	goalDirtyNet   = 10.0 // MiB, with one
	goalVersion    = 4.0  // ms, --version
	goalSize       = 12.0 // MiB, the program's file without symbols
)

// Program holds the program itself against its goals: its size in bytes without symbols, and its start. The set has
// the figures of Starts.
func Program(to *figures.Set, stripped int64) {
	sizeGoal(to, stripped)
	if f := to.Figure("boot/version"); f != nil && f.Of(nameOurs) != nil && f.Of(nameOurs).Summary.N > 0 {
		x := f.Of(nameOurs)
		// The median's own interval: what Compare gives beside a constant.
		of := x.Values.There()
		one := make([]float64, len(of))
		to.AddGoal("smolvmm --version, start → gone", goalVersion, "ms", stats.Compare(of, one, stats.Difference), len(of))
	}
}

func sizeGoal(to *figures.Set, stripped int64) {
	v := float64(stripped) / (1 << 20)
	to.AddGoal("size of smolvmm, stripped", goalSize, "MiB", stats.Interval{Value: v, Low: v, High: v}, figures.Certain)
}

// Memory puts what was measured of memory into a set.
func (r *Report) Memory(to *figures.Set) {
	r.into(to, memoryFigures(), false)
	f := to.Figure("memory/private-dirty")
	if f == nil {
		return
	}
	for _, g := range []struct {
		subject string
		bound   float64
	}{{nameOurs, goalDirty}, {nameNet, goalDirtyNet}} {
		if x := f.Of(g.subject); x != nil && x.Summary.N > 0 {
			i := stats.Interval{Value: x.Summary.Median, Low: x.Summary.P10, High: x.Summary.P90}
			to.AddGoal("private dirty memory of "+g.subject+" (brackets: p10, p90)", g.bound, "MiB", i, x.Summary.N)
		}
	}
}

func (r *Report) into(to *figures.Set, list []figureOf, detail bool) {
	for _, f := range list {
		fig := figures.Figure{ID: f.id, What: f.metric.name, Unit: f.metric.unit, Better: figures.Less, Detail: detail}
		for _, name := range r.order {
			samples, ok := r.Samples[f.what+"/"+name]
			if !ok {
				continue
			}
			x := figures.Series{Subject: name}
			for _, s := range samples {
				v := math.NaN()
				if s != nil {
					if got, ok := f.metric.of(s); ok {
						v = got
					}
				}
				x.Values = append(x.Values, v)
			}
			for _, bad := range r.Failures {
				if bad.What == f.what && bad.Subject == name {
					x.Failed, x.Failure = bad.Times, bad.First
				}
			}
			fig.Series = append(fig.Series, x)
		}
		to.Add(fig)
	}
}

// kernelParts are the pieces of a kernel's start: by its first bytes, by the lines that it puts its clock in front of, and
// by init's. A milestone that is not there makes the next piece longer.
func kernelParts() []figureOf {
	parts := []figureOf{
		{"process start → the kernel's first instruction", whatFull, toMark},
		{"→ its first console byte", whatFull, metric{of: func(s *Sample) (float64, bool) { return ms(s.Console - s.Mark), s.Console > 0 }}},
	}
	since := func(s *Sample, next int) time.Duration {
		for k := next - 1; k >= 0; k-- {
			if m := s.step(steps[k].begins); m != nil {
				return m.At
			}
		}
		return s.Console
	}
	for k, st := range steps {
		parts = append(parts, figureOf{"→ " + st.what, whatFull, metric{of: func(s *Sample) (float64, bool) {
			m := s.step(st.begins)
			if m == nil {
				return 0, false
			}
			return ms(m.At - since(s, k)), true
		}}})
	}
	return append(parts, figureOf{"→ init's command", whatFull, metric{of: func(s *Sample) (float64, bool) { return ms(s.Until - since(s, len(steps))), s.Until > 0 }}})
}

// kernelFigures are the same pieces one by one, and what the kernel's own clock says of them: details of boot/init.
func kernelFigures() (out []figureOf) {
	for k, p := range kernelParts() {
		p.metric.name, p.metric.unit = "a NetBSD kernel's start: "+p.id, "ms"
		out = append(out, figureOf{fmt.Sprintf("boot/kernel-phase-%d", k+1), p.what, p.metric})
	}
	first, last := steps[0], steps[len(steps)-1]
	return append(out, figureOf{"boot/kernel-clock", whatFull, metric{
		fmt.Sprintf("by the kernel's own clock: from %q to %q", first.begins, last.begins), "ms", func(s *Sample) (float64, bool) {
			a, b := s.step(first.begins), s.step(last.begins)
			if a == nil || b == nil {
				return 0, false
			}
			return 1000 * (b.Clock - a.Clock), true
		},
	}})
}

// Bars are the parts of a start that are seen from outside, of all programs alike.
func (r *Report) Bars(to *figures.Set) {
	for _, st := range []struct {
		id, title, what string
		parts           []figureOf
	}{
		{"boot/kernel", "Start of a NetBSD kernel, medians", whatFull, kernelParts()},
		{"boot/tiny", "Start of a guest of a few bytes, medians", whatTiny, []figureOf{{"process start → first guest instruction", whatTiny, toMark}}},
	} {
		stack := figures.Stack{ID: st.id, Title: st.title, Unit: "ms"}
		for _, name := range r.order {
			x := Series{samples: r.Samples[st.what+"/"+name]}
			bar := figures.Bar{Name: name}
			for _, p := range st.parts {
				if v := x.values(p.metric); len(v) > 0 {
					bar.Parts = append(bar.Parts, figures.Part{Name: p.id, Value: stats.Summarise(v).Median})
				}
			}
			if len(bar.Parts) > 0 {
				stack.Bars = append(stack.Bars, bar)
			}
		}
		if len(stack.Bars) > 0 {
			to.Stacks = append(to.Stacks, stack)
		}
	}
}

// With adds what only the figures of memory look at: smolvmm with its network.
func With(subjects []Subject, smolvmm string) []Subject {
	return append(subjects, smolvmmSubject(nameNet, smolvmm, "-net", "user"))
}
