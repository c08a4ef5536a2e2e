package main

import (
	"fmt"
	"io"

	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// series are the runs of one subject under one load, by round; nil: it failed.
type series struct {
	Subject string    `json:"subject"`
	Kind    kind      `json:"load"`
	MTU     int       `json:"mtu"`
	Samples []*sample `json:"samples"`
	Failed  int       `json:"failed,omitempty"`
	Failure string    `json:"failure,omitempty"`
}

// inTurn runs every subject once a round, in an order that rotates, after a round
// that does not count. A subject whose network cannot have the MTU sits out.
func inTurn(l load, all []subject, rounds int, kernel string, notes io.Writer) []series {
	var able []subject
	var out []series
	for _, s := range all {
		if s.mtu >= l.mtu {
			able = append(able, s)
			out = append(out, series{Subject: s.name, Kind: l.kind, MTU: l.mtu})
		}
	}
	for round := range rounds + 1 {
		for i := range able {
			at := (i + round) % len(able)
			x := &out[at]
			s, err := start(able[at], l, kernel)
			got := &s
			if err != nil {
				got = nil
				x.Failed++
				if x.Failure == "" {
					x.Failure = err.Error()
				}
				fmt.Fprintf(notes, "net: %s %d: %s: round %d: %v\n", l.kind, l.mtu, able[at].name, round, err)
			}
			if round > 0 {
				x.Samples = append(x.Samples, got)
			}
		}
	}
	fmt.Fprintf(notes, "net: %s at MTU %d: %d rounds done\n", l.kind, l.mtu, rounds)
	return out
}

// metric is a figure of a sample; 0 says that the run has none.
type metric struct {
	kinds []kind
	name  string
	of    func(*sample) float64
}

var metrics = []metric{
	{[]kind{kindUp, kindDown}, "Mbit/s", func(s *sample) float64 { return s.MBits }},
	{[]kind{kindUp, kindDown}, "CPU s per GB", func(s *sample) float64 { return s.CPU }},
	{[]kind{kindRR}, "µs a round trip, mean", func(s *sample) float64 { return s.Trip }},
	{[]kind{kindRR}, "µs, median of a run", func(s *sample) float64 { return s.P50 }},
	{[]kind{kindRR}, "µs, 99th percentile of a run", func(s *sample) float64 { return s.P99 }},
	{[]kind{kindConn}, "connections a second", func(s *sample) float64 { return s.Conns }},
}

func (x series) values(m metric) (out []float64) {
	for _, s := range x.Samples {
		if s != nil {
			out = append(out, m.of(s))
		}
	}
	return out
}

// both are the figures of the rounds in which both have one.
func both(x, y series, m metric) (a, b []float64) {
	for i := range min(len(x.Samples), len(y.Samples)) {
		if x.Samples[i] != nil && y.Samples[i] != nil {
			a, b = append(a, m.of(x.Samples[i])), append(b, m.of(y.Samples[i]))
		}
	}
	return a, b
}

// markdown writes one table for all.
func markdown(w io.Writer, all []series) {
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
				if y.Subject == nameSlirp && x.Subject != nameSlirp && y.Kind == x.Kind {
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

func contains(ks []kind, k kind) bool {
	for _, x := range ks {
		if x == k {
			return true
		}
	}
	return false
}
