package ports

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/smolvmm/smolvmm/devices"
)

var _ devices.Stateful = (*Ports)(nil)

// State is what the ports remember. Marks are not part of it: their times mean
// nothing on another host, and a machine that goes on begins a list of its own.
type State struct {
	Control   byte // port 0xCF9, bits 3:1
	Fast      byte // port 0x92, bit 0
	KBCOutput bool // the next byte to port 0x60 is for the output port
}

// Quiesce has nothing to stop.
func (p *Ports) Quiesce() error { return nil }

// Resume has nothing to start.
func (p *Ports) Resume() error { return nil }

// State gives the state as JSON.
func (p *Ports) State() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return json.Marshal(p.s)
}

// Restore puts a state into fresh ports.
func (p *Ports) Restore(state []byte) error {
	var s State
	d := json.NewDecoder(bytes.NewReader(state))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return fmt.Errorf("ports: bad state: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("ports: bad state: something follows it")
	}
	if s.Control&^rstMask != 0 || s.Fast&^fastInit != 0 {
		return errors.New("ports: bad state: a register has bits that do not exist")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.s = s
	return nil
}
