package fwcfg

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// State is how far the guest has read, and of what. It never holds a value: a
// snapshot is not a place for secrets. The items come again from the
// configuration of the machine that goes on.
type State struct {
	Selector uint16
	Name     string // of the selected file, "" if it is none
	Offset   int    // in bytes
}

// Quiesce has nothing to stop.
func (d *Device) Quiesce() error { return nil }

// Resume has nothing to start.
func (d *Device) Resume() error { return nil }

// State gives the state as JSON.
func (d *Device) State() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := State{Selector: d.selector, Offset: d.offset}
	if it := d.file(d.selector); it != nil {
		s.Name = it.name
	}
	return json.Marshal(s)
}

// Restore puts a state into a fresh device. Where the items are others now, so
// that the key stands for another file or none, or the file has become shorter,
// the rest of an interrupted read gives zeros: the guest must never get a part
// of something it did not select.
func (d *Device) Restore(state []byte) error {
	var s State
	dec := json.NewDecoder(bytes.NewReader(state))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("fw_cfg: bad state: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("fw_cfg: bad state: something follows it")
	}
	if s.Offset < 0 || s.Offset > MaxItem {
		return fmt.Errorf("fw_cfg: bad state: offset %d", s.Offset)
	}
	if s.Name != "" {
		if err := checkName(s.Name); err != nil {
			return fmt.Errorf("fw_cfg: bad state: %w", err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.choose(s.Selector)
	var name string
	if it := d.file(s.Selector); it != nil {
		name = it.name
	}
	if name != s.Name {
		d.selected = nil
	}
	d.offset = min(s.Offset, len(d.selected.bytes()))
	return nil
}
