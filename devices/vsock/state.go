package vsock

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// saved is what a device restored elsewhere has to know. Connections do not move:
// the driver is told that they are gone (VirtIO 1.2 §5.10.6.7), and reads its CID
// again, which may be another.
type saved struct {
	Version int    `json:"version"`
	CID     uint64 `json:"guest_cid"`
	// TransportReset: there is a driver that has to hear of it.
	TransportReset bool `json:"transport_reset"`
}

const stateVersion = 1

// maxState bounds a state in bytes; it has less than 100.
const maxState = 4 << 10

// State gives the device's own state.
func (d *Device) State() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.paused {
		return nil, errors.New("virtio-vsock: state of a device that is not quiesced")
	}
	d.work.Lock()
	defer d.work.Unlock()
	return json.Marshal(saved{Version: stateVersion, CID: d.cid, TransportReset: d.act != nil || d.resetDue})
}

// Restore puts a state into a fresh device.
func (d *Device) Restore(b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.act != nil {
		return errors.New("virtio-vsock: restore of a device in use")
	}
	if len(b) > maxState {
		return fmt.Errorf("virtio-vsock state: %d bytes, at most %d", len(b), maxState)
	}
	var s saved
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("virtio-vsock state: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("virtio-vsock state: more behind its end")
	}
	switch {
	case s.Version != stateVersion:
		return fmt.Errorf("virtio-vsock state: version %d, this program knows %d", s.Version, stateVersion)
	case s.CID < MinCID || s.CID > MaxCID:
		return fmt.Errorf("virtio-vsock state: CID %d", s.CID)
	}
	d.work.Lock()
	defer d.work.Unlock()
	d.resetDue = s.TransportReset
	d.paused = true
	return nil
}
