package main

import (
	"strings"
	"testing"
)

// TestParse: figures come out in the units of the goals, run by run.
func TestParse(t *testing.T) {
	rs, err := parse(strings.NewReader(`goos: linux
BenchmarkToHost/socket-2   	   40683	     28433 ns/op	1000.00 MB/s
BenchmarkRoundTrip/socket-2 	 47516	     24151 ns/op
BenchmarkToHost/socket-2   	   40683	     28433 ns/op	250.00 MB/s
BenchmarkRoundTrip/socket-2 	 47516	     40000 ns/op
BenchmarkRoundTrip/socket-2 	 47516	     39000 ns/op
PASS
`))
	if err != nil || len(rs) != 2 {
		t.Fatal(rs, err)
	}
	if r := rs[0]; r.Name != "ToHost/socket" || r.Unit != "Gbit/s" || r.Values[0] != 8 || r.Values[1] != 2 || !r.good() {
		t.Errorf("%+v", r)
	}
	if r := rs[1]; r.Name != "RoundTrip/socket" || r.Unit != "µs" || r.Summary.Median != 39 || r.good() {
		t.Errorf("%+v", r)
	}
	var b strings.Builder
	table(&b, rs)
	if !strings.Contains(b.String(), "≤ 30 MISSED") || strings.Count(b.String(), "MISSED") != 1 {
		t.Error(b.String())
	}
	for _, bad := range []string{"", "PASS\n", "BenchmarkX-2 1 y ns/op\n"} {
		if rs, err := parse(strings.NewReader(bad)); err == nil {
			t.Errorf("%q gave %v", bad, rs)
		}
	}
}
