package uart

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/smolvmm/smolvmm/devices"
)

var (
	_ devices.Region   = (*UART)(nil)
	_ devices.Stateful = (*UART)(nil)
)

// State is the UART's state apart from its wiring. Characters carry the LSR
// error bits they came with in bits 15:8.
type State struct {
	IER, FCR, LCR, MCR, SCR byte
	Divisor                 uint16
	MSRDelta                byte     // MSR bits 3:0
	LSRErrors               byte     // LSR bits 4:1
	THREPending             bool     // the THRE interrupt, enabled or not
	FIFO                    []uint16 // received, at most 16, without FIFOs 1
	Held                    []uint16 // from the host, not received yet, at most 1,024
	Unsent                  []byte   // sent by the guest, not taken by the host, at most 32 KiB
}

// State gives the state as JSON. The UART is quiesced.
func (u *UART) State() ([]byte, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := State{
		IER: u.ier, FCR: u.fcr, LCR: u.lcr, MCR: u.mcr, SCR: u.scr,
		Divisor:  uint16(u.dlm)<<8 | uint16(u.dll),
		MSRDelta: u.msrDelta, LSRErrors: u.lsrErr, THREPending: u.thre,
		Unsent: bytes.Clone(u.tx.front),
	}
	for i := range u.rxLen {
		s.FIFO = append(s.FIFO, uint16(u.rx[(u.rxHead+i)%fifoSize]))
	}
	for _, c := range u.host.held {
		s.Held = append(s.Held, uint16(c))
	}
	return json.Marshal(s)
}

// check refuses what no UART can have come to.
func (s *State) check() error {
	size := 1
	if s.FCR&fcrEnable != 0 {
		size = fifoSize
	}
	switch {
	case s.IER&^ierMask != 0, s.MCR&^mcrMask != 0, s.MSRDelta&^msrDeltas != 0, s.LSRErrors&^lsrErrors != 0,
		s.FCR&^fcrKept != 0, s.FCR != 0 && s.FCR&fcrEnable == 0:
		return errors.New("a register has bits that do not exist")
	case len(s.FIFO) > size:
		return fmt.Errorf("%d characters in a receiver of %d", len(s.FIFO), size)
	case len(s.Held) > heldMax:
		return fmt.Errorf("%d characters held, more than %d", len(s.Held), heldMax)
	case len(s.Unsent) > txHalf:
		return fmt.Errorf("%d bytes unsent, more than %d", len(s.Unsent), txHalf)
	}
	for _, list := range [][]uint16{s.FIFO, s.Held} {
		for _, c := range list {
			if c>>8&^lsrErrors != 0 {
				return fmt.Errorf("character %#x has flags that do not exist", c)
			}
		}
	}
	return nil
}

// Restore puts a state into a fresh UART, which is quiesced until Resume. What
// Input was given before is gone.
func (u *UART) Restore(state []byte) error {
	var s State
	d := json.NewDecoder(bytes.NewReader(state))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return fmt.Errorf("uart: bad state: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("uart: bad state: something follows it")
	}
	if err := s.check(); err != nil {
		return fmt.Errorf("uart: bad state: %w", err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stopped = true
	u.tx.hold = true
	u.ier, u.fcr, u.lcr, u.mcr, u.scr = s.IER, s.FCR, s.LCR, s.MCR, s.SCR
	u.dll, u.dlm = byte(s.Divisor), byte(s.Divisor>>8)
	u.msrDelta, u.lsrErr, u.thre = s.MSRDelta, s.LSRErrors, s.THREPending
	u.rxHead, u.rxLen = 0, len(s.FIFO)
	for i, c := range s.FIFO {
		u.rx[i] = rxChar(c)
	}
	u.host.held = u.host.held[:0]
	for _, c := range s.Held {
		u.host.held = append(u.host.held, rxChar(c))
	}
	if u.out != nil {
		u.tx.front = append(u.tx.front[:0], s.Unsent...)
		u.tx.full = len(u.tx.front) > txHalf-txRoom
	}
	return nil
}
