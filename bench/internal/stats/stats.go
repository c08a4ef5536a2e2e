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
}

// Summarise describes values.
func Summarise(values []float64) Summary {
	s := slices.Sorted(slices.Values(values))
	return Summary{len(s), Quantile(s, 0), Quantile(s, 0.1), Quantile(s, 0.5), Quantile(s, 0.9)}
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

// Digits prints three significant Digits, and never fewer than the whole part has.
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
