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
