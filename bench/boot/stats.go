package main

import (
	"math/rand/v2"
	"slices"
)

// resamples is how many times the bootstrap draws, and seed makes it draw the same for the same figures.
const (
	resamples = 4000
	seed      = 1
)

// quantile is the q-quantile of sorted values, linear between neighbours (Hyndman and Fan's type 7).
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// summary is a set of runs in short.
type summary struct {
	N      int     `json:"n"`
	Min    float64 `json:"min"`
	P10    float64 `json:"p10"`
	Median float64 `json:"median"`
	P90    float64 `json:"p90"`
}

func summarise(values []float64) summary {
	s := slices.Sorted(slices.Values(values))
	return summary{len(s), quantile(s, 0), quantile(s, 0.1), quantile(s, 0.5), quantile(s, 0.9)}
}

// interval is an estimate with its 95 % confidence interval.
type interval struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// compare estimates f(median a, median b) for two programs that were run in turn. The bootstrap draws rounds, not runs:
// what slowed a whole round down slowed both, and a drift of the machine does not widen the interval for nothing.
func compare(a, b []float64, f func(a, b float64) float64) interval {
	n := min(len(a), len(b))
	if n == 0 {
		return interval{}
	}
	a, b = a[:n], b[:n]
	median := func(v []float64) float64 {
		slices.Sort(v)
		return quantile(v, 0.5)
	}
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	x, y, out := make([]float64, n), make([]float64, n), make([]float64, resamples)
	for i := range out {
		for j := range n {
			k := r.IntN(n)
			x[j], y[j] = a[k], b[k]
		}
		out[i] = f(median(x), median(y))
	}
	slices.Sort(out)
	return interval{f(median(slices.Clone(a)), median(slices.Clone(b))), quantile(out, 0.025), quantile(out, 0.975)}
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func difference(a, b float64) float64 { return a - b }

// verdict is what an interval says of a bound that must not be passed.
type verdict string

const (
	reached verdict = "reached"
	missed  verdict = "missed"
	// unsettled: the interval lies on both sides of the bound.
	unsettled verdict = "not settled by these runs"
)

func judge(i interval, bound float64) verdict {
	switch {
	case i.High <= bound:
		return reached
	case i.Low > bound:
		return missed
	default:
		return unsettled
	}
}
