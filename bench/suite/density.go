package suite

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
	"github.com/smolvmm/smolvmm/bench/suite/boot"
)

// The goals for many machines.
const (
	goalGrowth   = 1.2  // memory of 100, of 100 times one's
	goalAllStart = 2000 // ms for 100, with two processors
	goalMachines = 100
)

// densityPart starts many machines of each monitor in turn.
func (r *runner) densityPart(ctx context.Context) error {
	kernel := filepath.Join(r.dir, "hold.elf")
	if err := os.WriteFile(kernel, boot.TinyGuest(true), 0o644); err != nil {
		return err
	}
	subjects, absent := boot.Find(r.dir, r.Program, r.Against)
	r.absent(absent...)
	subjects = boot.Monitors(subjects)
	runs := make([][]boot.Density, len(subjects))
	var broken error
	for round := range r.rounds {
		for i := range subjects {
			at := (i + round) % len(subjects)
			d, err := boot.Crowd(ctx, subjects[at], kernel, r.MiB, r.Machines, runtime.NumCPU(), r.Progress)
			if err != nil {
				return err
			}
			if d.Stopped != "" {
				fmt.Fprintf(r.Notes, "density: %s: %d machines: %s\n", d.Subject, len(d.Starts), d.Stopped)
				if d.Subject == figures.Ours && len(d.Starts) == 0 {
					broken = errors.New("density: no machine of smolvmm's started: " + d.Stopped)
				}
			}
			runs[at] = append(runs[at], d)
		}
	}
	if broken != nil {
		r.broken = append(r.broken, broken)
	}
	densityInto(r.set, runs, r.Machines)
	return nil
}

// densityInto puts runs of many machines, by subject, into a set.
func densityInto(to *figures.Set, runs [][]boot.Density, machines int) {
	all := figures.Figure{ID: "density/all-started", What: fmt.Sprintf("the first machine's start → %d machines run", machines), Unit: "ms", Better: figures.Less}
	one := figures.Figure{ID: "density/start", What: "start of one machine among the others", Unit: "ms", Better: figures.Less}
	memory := figures.Figure{ID: "density/memory-each", What: fmt.Sprintf("memory of each of %d machines (PSS, guest pages included)", machines), Unit: "MiB", Better: figures.Less}
	growth := figures.Figure{ID: "density/growth", What: fmt.Sprintf("memory of %d machines, of %d times the first's", machines, machines), Unit: "parts", Better: figures.Less}
	total := figures.Curve{ID: "density/memory", Title: "Memory of machines that wait", X: "machines", Y: "MiB"}
	times := figures.Curve{ID: "density/time", Title: "Time until machines run", X: "machines", Y: "ms"}
	for _, ds := range runs {
		if len(ds) == 0 {
			continue
		}
		name := ds[0].Subject
		s := [4]figures.Series{{Subject: name}, {Subject: name}, {Subject: name}, {Subject: name}}
		for _, d := range ds {
			v := [3]float64{math.NaN(), math.NaN(), math.NaN()}
			if d.Stopped != "" {
				for i := range s {
					if s[i].Failed++; s[i].Failure == "" {
						s[i].Failure = fmt.Sprintf("%d machines: %s", len(d.Starts), d.Stopped)
					}
				}
			} else if len(d.Memory) > 0 && len(d.Done) > 0 {
				first, last := d.Memory[0], d.Memory[len(d.Memory)-1]
				v[0] = float64(d.Done[len(d.Done)-1]) / 1e6
				v[1] = float64(last.PSS) / float64(last.Machines) / (1 << 20)
				v[2] = float64(last.PSS) / (float64(first.PSS) / float64(first.Machines) * float64(last.Machines))
			}
			s[0].Values, s[2].Values, s[3].Values = append(s[0].Values, v[0]), append(s[2].Values, v[1]), append(s[3].Values, v[2])
			for _, x := range d.Starts {
				s[1].Values = append(s[1].Values, float64(x)/1e6)
			}
			if k := boot.Knee(d.Starts); k > 0 {
				to.Notes = append(to.Notes, fmt.Sprintf("density: %s: starts take twice as long as the first ones from machine %d on", name, k))
			}
		}
		all.Series, one.Series, memory.Series, growth.Series = append(all.Series, s[0]), append(one.Series, s[1]), append(memory.Series, s[2]), append(growth.Series, s[3])
		d := ds[len(ds)-1]
		m, t := figures.Line{Name: name}, figures.Line{Name: name}
		for _, x := range d.Memory {
			m.Points = append(m.Points, [2]float64{float64(x.Machines), float64(x.PSS) / (1 << 20)})
		}
		for i, x := range d.Done {
			t.Points = append(t.Points, [2]float64{float64(i + 1), float64(x) / 1e6})
		}
		total.Lines, times.Lines = append(total.Lines, m), append(times.Lines, t)
	}
	to.Curves = append(to.Curves, total, times)
	for _, f := range []figures.Figure{all, one, memory, growth} {
		to.Add(f)
	}
	if machines != goalMachines {
		return
	}
	for _, g := range []struct {
		id, unit string
		bound    float64
	}{{"density/all-started", "ms", goalAllStart}, {"density/growth", "", goalGrowth}} {
		if f := to.Figure(g.id); f != nil && f.Of(figures.Ours) != nil {
			x := f.Of(figures.Ours).Summary
			to.AddGoal(f.What+" (brackets: p10, p90)", g.bound, g.unit, stats.Interval{Value: x.Median, Low: x.P10, High: x.P90}, x.N)
		}
	}
}
