package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		q, w float64
	}{
		{nil, 0.5, 0},
		{[]float64{7}, 0.9, 7},
		{[]float64{1, 2, 3}, 0.5, 2},
		{[]float64{1, 2, 3, 4}, 0.5, 2.5},
		{[]float64{0, 10}, 0.1, 1},
		{[]float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 0.9, 10},
		{[]float64{1, 2}, 1, 2},
	} {
		if got := Quantile(c.v, c.q); math.Abs(got-c.w) > 1e-12 {
			t.Errorf("quantile(%v, %v) = %v, want %v", c.v, c.q, got, c.w)
		}
	}
	if s := Summarise([]float64{3, 1, 2}); s != (Summary{3, 1, 1.2, 2, 2.8, 2.98}) || math.Abs(s.Spread()-0.8) > 1e-12 {
		t.Errorf("%+v", s)
	}
}

// TestCompare checks that the interval holds the truth about as often as it says, and that rounds are paired.
func TestCompare(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	const trials, n = 200, 30
	held := 0
	for range trials {
		a, b := make([]float64, n), make([]float64, n)
		for i := range n {
			a[i], b[i] = 50*(1+0.1*r.NormFloat64()), 100*(1+0.1*r.NormFloat64())
		}
		if i := Compare(a, b, Ratio); i.Low <= 0.5 && i.High >= 0.5 {
			held++
		}
	}
	if held < trials*88/100 || held == trials {
		t.Errorf("95 %% intervals held the truth %d of %d times", held, trials)
	}

	// Rounds that are slow for both: drawn together they say nothing about the ratio.
	var a, b []float64
	for i := range n {
		slow := 1 + float64(i)/10
		a, b = append(a, 10*slow), append(b, 20*slow)
	}
	if i := Compare(a, b, Ratio); i != (Interval{0.5, 0.5, 0.5}) {
		t.Errorf("paired rounds: %+v, want exactly 0.5", i)
	}
	if i := Compare(nil, b, Ratio); i != (Interval{}) {
		t.Errorf("nothing to compare: %+v", i)
	}
	if i := Compare([]float64{3, 3}, []float64{1, 1}, Difference); i != (Interval{2, 2, 2}) {
		t.Errorf("difference: %+v", i)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		i Interval
		v Verdict
	}{
		{Interval{1, 0.5, 2}, Reached},
		{Interval{1, 0.5, 3.5}, Unsettled},
		{Interval{4, 3.5, 5}, Missed},
	} {
		if got := Judge(c.i, 3); got != c.v {
			t.Errorf("%+v: %s, want %s", c.i, got, c.v)
		}
	}
}

// TestChange: a program that has become slower is seen, a machine that has is not
// taken for one, and two runs alike differ rarely.
func TestChange(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	run := func(own, peer, pace float64) (x Rounds) {
		for range 30 {
			slow := pace * (1 + 0.05*r.NormFloat64())
			x.Own = append(x.Own, own*slow*(1+0.02*r.NormFloat64()))
			if peer > 0 {
				x.Peer = append(x.Peer, peer*slow*(1+0.02*r.NormFloat64()))
			}
		}
		return x
	}
	if i := Change(run(5, 50, 1), run(6, 50, 1), 0.95); i.Low <= 1.1 || i.High >= 1.3 {
		t.Errorf("a fifth slower: %v", i)
	}
	if i := Change(run(5, 50, 1), run(5, 50, 2), 0.95); i.Low < 0.95 || i.High > 1.05 {
		t.Errorf("a machine half as fast: %v", i)
	}
	if i := Change(run(5, 0, 1), run(5, 0, 2), 0.95); i.Low <= 1.8 {
		t.Errorf("without a peer: %v", i)
	}
	if i := Change(run(5, 50, 1), run(5, 0, 1), 0.95); i.Low < 0.9 || i.High > 1.1 {
		t.Errorf("a peer on one side only: %v", i)
	}
	if i := Change(Rounds{}, run(5, 0, 1), 0.95); i != (Interval{}) {
		t.Errorf("nothing before: %v", i)
	}
	wrong := 0
	for range 30 {
		if i := Change(run(5, 50, 1), run(5, 50, 1), 0.95); i.Low > 1 || i.High < 1 {
			wrong++
		}
	}
	if wrong > 5 {
		t.Errorf("95 %% intervals saw a change %d times of 30 where there was none", wrong)
	}
}
