package net

import (
	"sync"
	"time"
)

// DefaultBurst is how much of a rate is saved up where Limit.Burst is 0: enough
// for a slow timer to cost no throughput.
const DefaultBurst = 100 * time.Millisecond

// Limit is the rate that one way is held to. What is beyond it waits in the ring,
// or in the network; nothing is dropped for it.
type Limit struct {
	BytesPerSecond   uint64 // of frames with their Ethernet headers; 0 is no limit
	PacketsPerSecond uint64 // frames; 0 is no limit
	// Burst is for how long an idle interface saves up its rate, which it may
	// then use at once; 0 stands for DefaultBurst.
	Burst time.Duration
}

// Limits are those of an interface: TX from the guest, RX to it. Each is one for
// all its queue pairs together.
type Limits struct{ TX, RX Limit }

// bucket meters one unit of one way. It is the generic cell rate algorithm (ITU-T
// I.371 §A.1), which is a token bucket kept as the moment when it will be out of
// debt: one number, no tick. A frame passes while there is no debt, whatever its
// size, and is paid for afterwards.
type bucket struct {
	rate uint64        // units a second; 0: no limit
	due  time.Duration // since the limiter's start
}

// take charges n units, at most 2^32, at now.
func (b *bucket) take(n uint64, now, burst time.Duration) {
	if b.rate == 0 {
		return
	}
	cost := n * uint64(time.Second) / b.rate // at most 2^32·10^9, below 2^63
	b.due = max(b.due, now-burst) + time.Duration(cost)
}

// limiter is the two buckets of one way; nil is no limit. Its lock is for transmit
// queues that share it.
type limiter struct {
	mu             sync.Mutex
	bytes, packets bucket
	burst          time.Duration
	start          time.Time
}

func newLimiter(l Limit) *limiter {
	if l.BytesPerSecond == 0 && l.PacketsPerSecond == 0 {
		return nil
	}
	m := &limiter{bytes: bucket{rate: l.BytesPerSecond}, packets: bucket{rate: l.PacketsPerSecond}, burst: l.Burst, start: time.Now()}
	if m.burst <= 0 {
		m.burst = DefaultBurst
	}
	// It begins full.
	m.bytes.due, m.packets.due = -m.burst, -m.burst
	return m
}

// wait says how long the next frame has to wait; 0: it may pass.
func (m *limiter) wait() time.Duration {
	if m == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, max(m.bytes.due, m.packets.due)-time.Since(m.start))
}

// take pays for a frame of n bytes.
func (m *limiter) take(n uint64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Since(m.start)
	m.bytes.take(n, now, m.burst)
	m.packets.take(1, now, m.burst)
}
