// Package stats tells what a set of measurements shows: medians, ratios with
// confidence intervals, and whether a bound was reached.
package stats

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// resamples is how many times the bootstrap draws, and seed makes it draw the same for the same figures.
const (
	resamples = 4000
	seed      = 1
)

// Quantile is the q-quantile of sorted values, linear between neighbours (Hyndman and Fan's type 7).
func Quantile(sorted []float64, q float64) float64 {
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

// Summary is a set of runs in short.
type Summary struct {
	N      int     `json:"n"`
	Min    float64 `json:"min"`
	P10    float64 `json:"p10"`
	Median float64 `json:"median"`
	P90    float64 `json:"p90"`
	P99    float64 `json:"p99"` // of fewer than a hundred runs next to their greatest
}

// Spread is how far p90 lies above p10, in parts of the median; 0 where that is 0.
func (s Summary) Spread() float64 {
	if s.Median == 0 {
		return 0
	}
	return (s.P90 - s.P10) / math.Abs(s.Median)
}

// Summarise describes values.
func Summarise(values []float64) Summary {
	s := slices.Sorted(slices.Values(values))
	return Summary{len(s), Quantile(s, 0), Quantile(s, 0.1), Quantile(s, 0.5), Quantile(s, 0.9), Quantile(s, 0.99)}
}

// Interval is an estimate with its 95 % confidence interval.
type Interval struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// String is the estimate with its interval in brackets.
func (i Interval) String() string {
	return fmt.Sprintf("%s [%s, %s]", Digits(i.Value), Digits(i.Low), Digits(i.High))
}

// Digits prints three significant digits, and never fewer than the whole part has.
func Digits(v float64) string {
	a := math.Abs(v)
	switch {
	case a == 0:
		return "0"
	case a < 0.01:
		return fmt.Sprintf("%.4f", v)
	case a < 1:
		return fmt.Sprintf("%.3f", v)
	case a < 10:
		return fmt.Sprintf("%.2f", v)
	case a < 100:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

// Compare estimates f(median a, median b) for two programs that were run in turn. The bootstrap draws rounds, not runs:
// what slowed a whole round down slowed both, and a drift of the machine does not widen the interval for nothing.
func Compare(a, b []float64, f func(a, b float64) float64) Interval {
	n := min(len(a), len(b))
	if n == 0 {
		return Interval{}
	}
	a, b = a[:n], b[:n]
	median := func(v []float64) float64 {
		slices.Sort(v)
		return Quantile(v, 0.5)
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
	return Interval{f(median(slices.Clone(a)), median(slices.Clone(b))), Quantile(out, 0.025), Quantile(out, 0.975)}
}

// Rounds are what a program gave in a run, and a peer in the same rounds. Without
// a peer there is nothing that the pace of the machine could be told by.
type Rounds struct{ Own, Peer []float64 }

// median of drawn rounds, as a part of the peer's where there is one.
func (r Rounds) median(draw func(n int) int, own, peer []float64) float64 {
	n := len(own)
	for i := range own {
		k := i
		if draw != nil {
			k = draw(n)
		}
		own[i] = r.Own[k]
		if peer != nil {
			peer[i] = r.Peer[k]
		}
	}
	slices.Sort(own)
	m := Quantile(own, 0.5)
	if peer != nil {
		slices.Sort(peer)
		m = Ratio(m, Quantile(peer, 0.5))
	}
	return m
}

// Change estimates after's median divided by before's, for two runs at different
// times. Each is taken as a part of its own peer's if both have one, so that a
// machine that has become slower does not look like a slower program. The interval
// holds the truth with the given confidence, such as 0.95.
func Change(before, after Rounds, confidence float64) Interval {
	scratch := func(r Rounds) (own, peer []float64) {
		if len(before.Peer) == 0 || len(after.Peer) == 0 {
			return make([]float64, len(r.Own)), nil
		}
		n := min(len(r.Own), len(r.Peer))
		return make([]float64, n), make([]float64, n)
	}
	a, p := scratch(before)
	b, q := scratch(after)
	if len(a) == 0 || len(b) == 0 {
		return Interval{}
	}
	r := rand.New(rand.NewPCG(seed, uint64(len(a)+len(b))))
	out := make([]float64, resamples)
	for i := range out {
		out[i] = Ratio(after.median(r.IntN, b, q), before.median(r.IntN, a, p))
	}
	slices.Sort(out)
	tail := (1 - confidence) / 2
	return Interval{Ratio(after.median(nil, b, q), before.median(nil, a, p)), Quantile(out, tail), Quantile(out, 1-tail)}
}

// Ratio is a/b, 0 where b is.
func Ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// Difference is a-b.
func Difference(a, b float64) float64 { return a - b }

// Verdict is what an interval says of a bound that must not be passed.
type Verdict string

const (
	Reached Verdict = "reached"
	Missed  Verdict = "missed"
	// Unsettled: the interval lies on both sides of the bound.
	Unsettled Verdict = "not settled by these runs"
)

// Judge holds an interval against a bound that must not be passed.
func Judge(i Interval, bound float64) Verdict {
	switch {
	case i.High <= bound:
		return Reached
	case i.Low > bound:
		return Missed
	default:
		return Unsettled
	}
}
