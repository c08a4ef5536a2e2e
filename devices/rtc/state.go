package rtc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// State is the clock's state. The time is kept as its distance from the host's
// clock, so that a machine that slept finds the right time when it wakes up.
type State struct {
	Index         byte
	RAM           []byte // 128 registers, of which those computed hold old values
	OffsetSeconds int64  // the guest's time minus the host's
	OffsetNanos   int64  // and its fraction, 0 to 999,999,999
	SeenSecond    int64  // the guest's Unix time when register C was last read
	SeenPeriod    int64  // the same in periods of register A's rate
}

// maxOffset bounds OffsetSeconds and, in seconds, the other times of a state:
// 100,000 years, beyond what the registers can express.
const maxOffset = 100_000 * 366 * 86_400

// Quiesce has nothing to stop: the clock works only when it is asked.
func (c *Clock) Quiesce() error { return nil }

// Resume has nothing to start.
func (c *Clock) Resume() error { return nil }

// State gives the state as JSON.
func (c *Clock) State() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return json.Marshal(State{
		Index: c.index, RAM: c.ram[:], OffsetSeconds: c.offSec, OffsetNanos: c.offNsec,
		SeenSecond: c.seenSec, SeenPeriod: c.seenPeriod,
	})
}

func (s *State) check() error {
	switch {
	case len(s.RAM) != ramSize:
		return fmt.Errorf("%d registers, want %d", len(s.RAM), ramSize)
	case s.Index&^indexMask != 0:
		return fmt.Errorf("index %#x, want at most %#x", s.Index, indexMask)
	case s.RAM[regA]&aUIP != 0, s.RAM[regB]&bSET != 0 && s.RAM[regB]&bUIE != 0:
		return errors.New("registers A and B as they never are")
	case s.OffsetSeconds < -maxOffset || s.OffsetSeconds > maxOffset,
		s.OffsetNanos < 0 || s.OffsetNanos >= 1e9:
		return errors.New("the time is out of range")
	}
	return nil
}

// Restore puts a state into a fresh clock.
func (c *Clock) Restore(state []byte) error {
	var s State
	d := json.NewDecoder(bytes.NewReader(state))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return fmt.Errorf("rtc: bad state: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("rtc: bad state: something follows it")
	}
	if err := s.check(); err != nil {
		return fmt.Errorf("rtc: bad state: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index, c.offSec, c.offNsec = s.Index, s.OffsetSeconds, s.OffsetNanos
	c.seenSec, c.seenPeriod = s.SeenSecond, s.SeenPeriod
	copy(c.ram[:], s.RAM)
	c.latched = false
	return nil
}
