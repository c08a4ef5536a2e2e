package mmio

import (
	"encoding/json"
	"fmt"

	"github.com/smolvmm/smolvmm/devices/virtq"
)

// saved is a transport at rest, as State writes it.
type saved struct {
	ID             uint32          `json:"id"`
	Status         uint32          `json:"status"`
	ISR            uint32          `json:"isr"`
	Generation     uint32          `json:"generation"`
	DeviceSel      uint32          `json:"device_sel"`
	DriverSel      uint32          `json:"driver_sel"`
	QueueSel       uint32          `json:"queue_sel"`
	DriverFeatures uint64          `json:"driver_features"`
	Beyond         uint32          `json:"beyond,omitempty"`
	Queues         []savedQueue    `json:"queues"`
	Device         json.RawMessage `json:"device"`
}

type savedQueue struct {
	Num   uint32       `json:"num"`
	Desc  uint64       `json:"desc"`
	Avail uint64       `json:"avail"`
	Used  uint64       `json:"used"`
	Ring  *virtq.State `json:"ring,omitempty"` // there while QueueReady is 1
	Early bool         `json:"early,omitempty"`
}

// Quiesce stops the device and lets go of guest memory. The vCPUs have been
// stopped before: what the guest writes meanwhile is remembered, but DRIVER_OK
// takes effect at Resume. Quiescing twice does nothing.
func (t *Transport) Quiesce() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paused || t.closed {
		return nil
	}
	if err := t.dev.Quiesce(); err != nil {
		return fmt.Errorf("virtio-mmio: device %d: %w", t.id, err)
	}
	t.paused = true
	for i := range t.queues {
		if r := t.queues[i].ring; r != nil {
			r.Drop()
		}
	}
	return nil
}

// Resume goes on after Quiesce or Restore. The device finds its rings attached
// again; after Restore it gets them by Activate first, and then Resume.
func (t *Transport) Resume() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.paused || t.closed {
		return nil
	}
	for i := range t.queues {
		if r := t.queues[i].ring; r != nil {
			if err := r.Attach(t.mem); err != nil {
				return fmt.Errorf("virtio-mmio: device %d, queue %d: %w", t.id, i, err)
			}
		}
	}
	t.paused = false
	if t.pending {
		t.pending = false
		if err := t.activate(); err != nil {
			t.needsReset(err)
		}
	}
	if err := t.dev.Resume(); err != nil {
		return fmt.Errorf("virtio-mmio: device %d: %w", t.id, err)
	}
	for i := range t.queues {
		// A doorbell rung for the old machine is silent in a new one; a ring
		// too many costs the device one look.
		if t.queues[i].ring != nil && t.end != nil {
			t.queues[i].bell.Ring()
		}
	}
	t.drive() // in a new machine it is low yet
	return nil
}

// State gives registers, rings and the device's own state as JSON. The
// transport is quiesced.
func (t *Transport) State() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.paused {
		return nil, fmt.Errorf("virtio-mmio: device %d: state taken while it runs; quiesce it first", t.id)
	}
	dev, err := t.dev.State()
	if err != nil {
		return nil, fmt.Errorf("virtio-mmio: device %d: %w", t.id, err)
	}
	s := saved{
		ID: t.id, Status: t.status.Load(), ISR: t.isr.Load(), Generation: t.gen.Load(),
		DeviceSel: t.deviceSel, DriverSel: t.driverSel, QueueSel: t.queueSel,
		DriverFeatures: t.driverFeatures, Beyond: t.beyond, Device: dev,
	}
	for i := range t.queues {
		q := &t.queues[i]
		sq := savedQueue{Num: q.num, Desc: q.desc, Avail: q.avail, Used: q.used, Early: q.early}
		if q.ring != nil {
			rs := q.ring.State()
			if s.Status&statusNeedsReset != 0 {
				// What a broken device abandoned will never come back, and the
				// ring is of no use before it is made anew.
				rs.NextAvail = rs.NextUsed
			} else if n := rs.NextAvail - rs.NextUsed; n != 0 {
				return nil, fmt.Errorf("virtio-mmio: device %d, queue %d: %d requests in flight in a quiesced device", t.id, i, n)
			}
			sq.Ring = &rs
		}
		s.Queues = append(s.Queues, sq)
	}
	return json.Marshal(s)
}

// Restore puts a state into a fresh transport whose device was made as the
// other was. The transport is quiesced then. A state that no guest could have
// brought about is an error, behind which the transport is of no use but to be
// closed.
func (t *Transport) Restore(state []byte) error {
	var s saved
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("virtio-mmio: device %d: state: %w", t.id, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.restore(&s); err != nil {
		return fmt.Errorf("virtio-mmio: device %d: state: %w", t.id, err)
	}
	return nil
}

func (t *Transport) restore(s *saved) error {
	if t.closed || t.end != nil || t.status.Load() != 0 {
		return fmt.Errorf("the transport is in use")
	}
	if s.ID != t.id {
		return fmt.Errorf("it is that of device type %d", s.ID)
	}
	if len(s.Queues) != len(t.queues) {
		return fmt.Errorf("it has %d queues, the device %d", len(s.Queues), len(t.queues))
	}
	if s.ISR&^intAll != 0 {
		return fmt.Errorf("interrupt status %#x has unknown bits", s.ISR)
	}
	at := s.Status &^ (statusNeedsReset | statusFailed)
	if _, ok := steps[at]; !ok && at != stateRunning {
		return fmt.Errorf("status %#x is none that a driver can reach", s.Status)
	}
	t.driverFeatures, t.beyond = s.DriverFeatures, s.Beyond
	agreed := at&statusFeaturesOK != 0
	if agreed && !t.featuresOK() {
		return fmt.Errorf("features %#x were negotiated, the device offers %#x", s.DriverFeatures, t.offered)
	}
	for i, sq := range s.Queues {
		q := &t.queues[i]
		q.num, q.desc, q.avail, q.used = sq.Num, sq.Desc, sq.Avail, sq.Used
		if q.early = sq.Early; q.early && at != stateDriver {
			return fmt.Errorf("queue %d: it waits for features that were negotiated", i)
		}
		if sq.Ring == nil {
			continue
		}
		if !agreed || q.num > uint32(q.max) || sq.Ring.Config != t.config(q) {
			return fmt.Errorf("queue %d: the ring is not what the registers say", i)
		}
		ring, err := virtq.Restore(t.mem, *sq.Ring)
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		ring.Drop()
		q.ring = ring
	}
	if err := t.dev.Restore(s.Device); err != nil {
		return err
	}
	t.deviceSel, t.driverSel, t.queueSel = s.DeviceSel, s.DriverSel, s.QueueSel
	t.gen.Store(s.Generation)
	t.isr.Store(s.ISR)
	t.status.Store(s.Status)
	t.paused = true
	t.pending = at == stateRunning && s.Status&statusNeedsReset == 0
	return nil
}
