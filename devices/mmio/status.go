package mmio

import (
	"fmt"

	"github.com/smolvmm/smolvmm/devices/virtq"
)

// Bits of the device status (VirtIO 1.2 §2.1).
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 64
	statusFailed      = 128
)

// The states that a driver leads a device through (§3.1.1).
const (
	stateReset       = 0
	stateAcknowledge = statusAcknowledge
	stateDriver      = stateAcknowledge | statusDriver
	stateFeatures    = stateDriver | statusFeaturesOK
	stateRunning     = stateFeatures | statusDriverOK
)

// steps are the only ways forward: from each state to one next, by way of what
// the transport does then. False leaves the status as it was, which is how a
// driver learns that its features were refused (§3.1.1 step 6). Besides these a
// driver may always set FAILED and always reset; any other write is ignored,
// for a driver must not clear a bit (§2.1.1).
var steps = map[uint32]struct {
	next uint32
	do   func(*Transport) bool
}{
	stateReset:       {stateAcknowledge, nil},
	stateAcknowledge: {stateDriver, nil},
	stateDriver:      {stateFeatures, (*Transport).agree},
	stateFeatures:    {stateRunning, nil},
}

// writeStatus is the driver's write of v to Status. The caller holds mu.
func (t *Transport) writeStatus(v uint32) {
	if v == 0 {
		t.reset()
		return
	}
	now := t.status.Load()
	if v&statusFailed != 0 {
		t.status.Or(statusFailed)
		return
	}
	if now&(statusFailed|statusNeedsReset) != 0 {
		return
	}
	// NEEDS_RESET is the device's own bit: a driver that writes it back says
	// nothing by it.
	step, ok := steps[now]
	if !ok || v&^statusNeedsReset != step.next {
		return
	}
	if step.do != nil && !step.do(t) {
		return
	}
	// Or, not Store: the device may have set NEEDS_RESET meanwhile.
	t.status.Or(step.next)
	if step.next == stateRunning {
		t.start()
	}
}

// featuresOK accepts the driver's choice if it is one the device can honour:
// a subset of the offer with VERSION_1 in it (§2.2.2, §6.2).
func (t *Transport) featuresOK() bool {
	return t.driverFeatures&^t.offered == 0 && t.beyond == 0 && t.driverFeatures&FeatureVersion1 != 0
}

// agree accepts the driver's features, and makes the rings of the queues that it
// set up before.
func (t *Transport) agree() bool {
	if !t.featuresOK() {
		return false
	}
	for i := range t.queues {
		if q := &t.queues[i]; q.early {
			q.early = false
			t.readyRing(i)
		}
	}
	return true
}

// start activates the device, now or at Resume.
func (t *Transport) start() {
	if t.paused {
		t.pending = true
		return
	}
	if err := t.activate(); err != nil {
		t.needsReset(err)
	}
}

// configurable says whether the driver may set up queues, while nothing has
// failed: from FEATURES_OK to DRIVER_OK (§3.1.1 step 7), or from DRIVER on, as
// NetBSD's drivers do that set up a device again (virtio_reinit_start).
func (t *Transport) configurable() bool {
	s := t.status.Load()
	return s == stateFeatures || s == stateDriver
}

// writeReady is the driver's write to QueueReady of the selected queue (§4.2.3.2).
func (t *Transport) writeReady(q *queue, v uint32) {
	switch {
	case t.status.Load() == stateDriver:
		// What a ring is like depends on the features.
		q.early = v == 1 || v != 0 && q.early
	case v == 0 && q.ring != nil:
		q.ring.Drop()
		q.ring = nil
	case v == 1 && q.ring == nil:
		t.readyRing(int(t.queueSel))
	}
}

// readyRing makes queue i's ring.
func (t *Transport) readyRing(i int) {
	q := &t.queues[i]
	ring, err := t.makeRing(q)
	if err != nil {
		t.needsReset(fmt.Errorf("virtio-mmio: device %d, queue %d: %w", t.id, i, err))
		return
	}
	if t.paused {
		ring.Drop()
	}
	q.ring = ring
}

// config is a queue's configuration as the registers have it.
func (t *Transport) config(q *queue) virtq.Config {
	return virtq.Config{
		Size: uint16(q.num), Desc: q.desc, Avail: q.avail, Used: q.used,
		EventIdx: t.driverFeatures&virtq.FeatureEventIdx != 0,
		Indirect: t.driverFeatures&virtq.FeatureIndirectDesc != 0,
	}
}

func (t *Transport) makeRing(q *queue) (*virtq.Queue, error) {
	if q.num > uint32(q.max) {
		return nil, fmt.Errorf("size %d: the device takes %d", q.num, q.max)
	}
	return virtq.New(t.mem, t.config(q))
}
