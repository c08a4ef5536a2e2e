package network

import (
	"context"
	"fmt"
	"io"

	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// Series are the runs of one subject under one load, by round; nil: it failed.
type Series struct {
	Subject string    `json:"subject"`
	Kind    Kind      `json:"load"`
	MTU     int       `json:"mtu"`
	Samples []*Sample `json:"samples"`
	Failed  int       `json:"failed,omitempty"`
	Failure string    `json:"failure,omitempty"`
}

// InTurn runs every subject once a round, in an order that rotates, after a round
// that does not count. A subject whose network cannot have the MTU sits out.
func InTurn(ctx context.Context, l Load, all []Subject, rounds int, kernel string, notes io.Writer, progress func(what string, done, total int)) []Series {
	var able []Subject
	var out []Series
	for _, s := range all {
		if s.mtu >= l.MTU {
			able = append(able, s)
			out = append(out, Series{Subject: s.Name, Kind: l.Kind, MTU: l.MTU})
		}
	}
	for round := range rounds + 1 {
		for i := range able {
			at := (i + round) % len(able)
			x := &out[at]
			s, err := start(ctx, able[at], l, kernel)
			if err != nil && ctx.Err() != nil {
				return out
			}
			got := &s
			if err != nil {
				got = nil
				x.Failed++
				if x.Failure == "" {
					x.Failure = err.Error()
				}
				fmt.Fprintf(notes, "net: %s %d: %s: round %d: %v\n", l.Kind, l.MTU, able[at].Name, round, err)
			}
			if round > 0 {
				x.Samples = append(x.Samples, got)
			}
		}
		if progress != nil {
			progress(fmt.Sprintf("network, %s at MTU %d", l.Kind, l.MTU), round+1, rounds+1)
		}
	}
	fmt.Fprintf(notes, "net: %s at MTU %d: %d rounds done\n", l.Kind, l.MTU, rounds)
	return out
}

// metric is a figure of a sample; 0 says that the run has none.
type metric struct {
	kinds          []Kind
	id, unit, name string
	more           bool // is better
	of             func(*Sample) float64
}

var metrics = []metric{
	{[]Kind{Up, Down}, "throughput", "Mbit/s", "Mbit/s", true, func(s *Sample) float64 { return s.MBits }},
	{[]Kind{Up, Down}, "cpu", "s/GB", "CPU s per GB", false, func(s *Sample) float64 { return s.CPU }},
	{[]Kind{RoundTrips}, "mean", "µs", "µs a round trip, mean", false, func(s *Sample) float64 { return s.Trip }},
	{[]Kind{RoundTrips}, "p50", "µs", "µs, median of a run", false, func(s *Sample) float64 { return s.P50 }},
	{[]Kind{RoundTrips}, "p99", "µs", "µs, 99th percentile of a run", false, func(s *Sample) float64 { return s.P99 }},
	{[]Kind{Connections}, "connections", "1/s", "connections a second", true, func(s *Sample) float64 { return s.Conns }},
}

func (x Series) values(m metric) (out []float64) {
	for _, s := range x.Samples {
		if s != nil {
			out = append(out, m.of(s))
		}
	}
	return out
}

// both are the figures of the rounds in which both have one.
func both(x, y Series, m metric) (a, b []float64) {
	for i := range min(len(x.Samples), len(y.Samples)) {
		if x.Samples[i] != nil && y.Samples[i] != nil {
			a, b = append(a, m.of(x.Samples[i])), append(b, m.of(y.Samples[i]))
		}
	}
	return a, b
}

// Markdown writes one table for all.
func Markdown(w io.Writer, all []Series) {
	fmt.Fprint(w, "| load | MTU | figure | of | median | p10–p90 | ÷ QEMU user |\n|---|---:|---|---|---:|---:|---:|\n")
	for _, m := range metrics {
		for _, x := range all {
			if !contains(m.kinds, x.Kind) {
				continue
			}
			v := x.values(m)
			if len(v) == 0 {
				fmt.Fprintf(w, "| %s | %d | %s | %s | failed |  |  |\n", x.Kind, x.MTU, m.name, x.Subject)
				continue
			}
			s := stats.Summarise(v)
			ratio := ""
			for _, y := range all {
				if y.Subject == QEMUUser && x.Subject != QEMUUser && y.Kind == x.Kind {
					if a, b := both(x, y, m); len(a) > 0 {
						ratio = stats.Compare(a, b, stats.Ratio).String()
					}
				}
			}
			fmt.Fprintf(w, "| %s | %d | %s | %s | %s | %s–%s | %s |\n", x.Kind, x.MTU, m.name, x.Subject,
				stats.Digits(s.Median), stats.Digits(s.P10), stats.Digits(s.P90), ratio)
		}
	}
}

func contains(ks []Kind, k Kind) bool {
	for _, x := range ks {
		if x == k {
			return true
		}
	}
	return false
}
