package figures

import (
	"fmt"
	"io"
	"slices"

	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// Change is what became of one figure of smolvmm's between two sets.
type Change struct {
	ID     string
	Peer   string // whose pace it was measured by in both sets; "": by the clock alone
	Before stats.Summary
	After  stats.Summary
	Unit   string
	// Slower is how much worse it is: after's part of before's, or the other way
	// round where more is better. Above 1 is a slowdown.
	Slower  stats.Interval
	Verdict Verdict
}

// Verdict on a change.
type Verdict string

const (
	Slower Verdict = "slower"
	Faster Verdict = "faster"
	Same   Verdict = "no change shown"
	Gone   Verdict = "not measured any more"
	Added  Verdict = "new"
)

// Comparison is two sets beside each other.
type Comparison struct {
	Changes  []Change
	Warnings []string
}

// Slowdowns are how many figures got significantly slower.
func (c Comparison) Slowdowns() (n int) {
	for _, x := range c.Changes {
		if x.Verdict == Slower {
			n++
		}
	}
	return n
}

// leastRounds is how many values a set needs for a change to be called one.
const leastRounds = 4

// Compare holds smolvmm's figures in two sets against each other. A figure is
// slower if its interval lies above 1 by more than tolerance (0.05 is a twentieth).
// All intervals together hold the truth with 95 %: each of n figures' is as much
// wider (Bonferroni), or one of many would be slower by chance. By the first of
// peers that both sets have measured, the machine's own pace is taken out.
func Compare(before, after *Set, peers []string, tolerance float64) Comparison {
	var c Comparison
	if before.Host.CPU != after.Host.CPU || before.Host.Kernel != after.Host.Kernel || before.Host.KVM != after.Host.KVM || before.Host.CPUs != after.Host.CPUs || before.Host.Lab != after.Host.Lab {
		c.Warnings = append(c.Warnings, fmt.Sprintf("measured on different machines: %s; %s", before.Host, after.Host))
	}
	type pair struct {
		change   Change
		old, new stats.Rounds
		better   Better
	}
	var pairs []pair
	for _, f := range before.Figures {
		x := f.Of(Ours)
		if x == nil || x.Summary.N == 0 || f.Detail {
			continue
		}
		g := after.Figure(f.ID)
		if g == nil || g.Of(Ours) == nil || len(g.Of(Ours).Values.There()) == 0 {
			c.Changes = append(c.Changes, Change{ID: f.ID, Unit: f.Unit, Before: x.Summary, Verdict: Gone})
			continue
		}
		y := g.Of(Ours)
		p := pair{
			change: Change{ID: f.ID, Unit: f.Unit, Before: stats.Summarise(x.Values.There()), After: stats.Summarise(y.Values.There())},
			old:    stats.Rounds{Own: x.Values.There()}, new: stats.Rounds{Own: y.Values.There()}, better: f.Better,
		}
		for _, peer := range peers {
			if px, py := f.Of(peer), g.Of(peer); px != nil && py != nil {
				a, ap := Both(x.Values, px.Values)
				b, bp := Both(y.Values, py.Values)
				if len(a) >= leastRounds && len(b) >= leastRounds {
					p.old, p.new, p.change.Peer = stats.Rounds{Own: a, Peer: ap}, stats.Rounds{Own: b, Peer: bp}, peer
					break
				}
			}
		}
		pairs = append(pairs, p)
	}
	for _, p := range pairs {
		x := p.change
		if p.better == Less {
			x.Slower = stats.Change(p.old, p.new, 1-0.05/float64(len(pairs)))
		} else {
			x.Slower = stats.Change(p.new, p.old, 1-0.05/float64(len(pairs)))
		}
		x.Verdict = Same
		switch {
		case len(p.old.Own) < leastRounds || len(p.new.Own) < leastRounds:
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s: %d and %d values are too few to tell", x.ID, len(p.old.Own), len(p.new.Own)))
		case x.Slower.Low > 1+tolerance:
			x.Verdict = Slower
		case x.Slower.High < 1 && x.Slower.High > 0:
			x.Verdict = Faster
		}
		c.Changes = append(c.Changes, x)
	}
	for _, f := range after.Figures {
		if y := f.Of(Ours); y != nil && y.Summary.N > 0 && !f.Detail && (before.Figure(f.ID) == nil || before.Figure(f.ID).Of(Ours) == nil) {
			c.Changes = append(c.Changes, Change{ID: f.ID, Unit: f.Unit, After: y.Summary, Verdict: Added})
		}
	}
	slices.SortStableFunc(c.Changes, func(a, b Change) int { return order(a.Verdict) - order(b.Verdict) })
	return c
}

func order(v Verdict) int { return slices.Index([]Verdict{Slower, Gone, Same, Faster, Added}, v) }

// Markdown writes the comparison.
func (c Comparison) Markdown(w io.Writer) {
	fmt.Fprint(w, "| smolvmm's figure | before | after | how much slower | by the pace of | |\n|---|---:|---:|---:|---|---|\n")
	for _, x := range c.Changes {
		before, after, slower, peer := "", "", "", x.Peer
		if x.Before.N > 0 {
			before = stats.Digits(x.Before.Median) + " " + x.Unit
		}
		if x.After.N > 0 {
			after = stats.Digits(x.After.Median) + " " + x.Unit
		}
		if x.Verdict != Gone && x.Verdict != Added {
			slower = x.Slower.String()
			if peer == "" {
				peer = "the clock"
			}
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", cell(x.ID), before, after, slower, cell(peer), x.Verdict)
	}
	bullets(w, "Doubts", c.Warnings)
}
