package blk

import (
	"math"
	"testing"
	"time"
)

// Each length of time is in the first bucket whose limit is above it.
func TestLatencyBuckets(t *testing.T) {
	for _, d := range []time.Duration{-1, 0, 1, 1023, 1024, 1025, 2047, 2048, time.Millisecond, time.Second, 4 * time.Second, time.Hour, math.MaxInt64} {
		i := bucketOf(d)
		if i < 0 || i >= LatencyBuckets {
			t.Fatalf("%v: bucket %d", d, i)
		}
		if end := LatencyLimit(i); end != 0 && d >= end {
			t.Errorf("%v is in bucket %d, which ends at %v", d, i, end)
		}
		if i > 0 && d < LatencyLimit(i-1) {
			t.Errorf("%v is in bucket %d, and fits the one before, up to %v", d, i, LatencyLimit(i-1))
		}
	}
	if LatencyLimit(LatencyBuckets-1) != 0 || LatencyLimit(LatencyBuckets-2) < 4*time.Second {
		t.Errorf("the last buckets begin at %v", LatencyLimit(LatencyBuckets-2))
	}
}

// account does what the path of a request does to be counted.
func account(w *worker) {
	w.began = time.Now()
	w.finish(kindRead, 4096, nil)
}

// Counting allocates nothing.
func TestAccountingIsFree(t *testing.T) {
	w := &worker{d: &Device{}}
	if n := testing.AllocsPerRun(1000, func() { account(w) }); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
	s, l := w.d.Stats().Read, w.d.Latencies().Read
	var sum uint64
	for _, n := range l.Took {
		sum += n
	}
	if s.Requests < 1000 || sum != s.Requests || s.Bytes != 4096*s.Requests {
		t.Errorf("%+v, %+v", s, l)
	}
}

// BenchmarkAccounting is what counters and latency cost a request, beside some
// microseconds that the least request takes.
func BenchmarkAccounting(b *testing.B) {
	w := &worker{d: &Device{}}
	b.ReportAllocs()
	for b.Loop() {
		account(w)
	}
}
