package network

import (
	"fmt"
	"math"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
)

// Into puts what was measured into a set, a figure for each load and metric.
func Into(to *figures.Set, all []Series) {
	type point struct {
		kind Kind
		mtu  int
	}
	var order []point
	byPoint := map[point][]Series{}
	for _, x := range all {
		p := point{x.Kind, x.MTU}
		if byPoint[p] == nil {
			order = append(order, p)
		}
		byPoint[p] = append(byPoint[p], x)
	}
	for _, p := range order {
		for _, m := range metrics {
			if !contains(m.kinds, p.kind) {
				continue
			}
			better := figures.Less
			if m.more {
				better = figures.More
			}
			f := figures.Figure{
				ID: fmt.Sprintf("net/%s-%d-%s", p.kind, p.mtu, m.id), What: fmt.Sprintf("%s, MTU %d: %s", p.kind, p.mtu, m.name),
				Unit: m.unit, Better: better,
			}
			for _, x := range byPoint[p] {
				s := figures.Series{Subject: x.Subject, Failed: x.Failed, Failure: x.Failure}
				for _, v := range x.Samples {
					if v == nil {
						s.Values = append(s.Values, math.NaN())
					} else {
						s.Values = append(s.Values, m.of(v))
					}
				}
				f.Series = append(f.Series, s)
			}
			to.Add(f)
		}
	}
}
