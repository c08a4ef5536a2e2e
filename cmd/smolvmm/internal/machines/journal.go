package machines

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"
)

// State is a point in a machine's life.
type State string

// The states that a journal has, in order; Paused is known by the machine's
// process alone, and Dead is a machine whose process went without a word.
const (
	Starting State = "starting"
	Running  State = "running"
	Ready    State = "ready"
	Ended    State = "ended"
	Paused   State = "paused"
	Dead     State = "dead"
)

// Record is a line of a machine's journal.
type Record struct {
	Time  time.Time `json:"time"`
	State State     `json:"state"`
	// Status is the process's exit status and Text how the guest ended, with Ended;
	// with Ready Text is what told.
	Status int      `json:"status"`
	Text   string   `json:"text,omitempty"`
	Addrs  []string `json:"addrs,omitempty"` // with Running: published ports
}

// Note appends a record. A confined process may.
func (c *Claim) Note(r Record) error {
	if r.Time.IsZero() {
		r.Time = time.Now().Round(0)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := c.journal.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("the machine's journal: %w", err)
	}
	return nil
}

// readJournal takes in what the journal tells, as far as its lines are whole.
func (m *Machine) readJournal() {
	b, err := readBounded(filepath.Join(m.dir, journalName), maxJournal)
	if err == nil {
		m.takeJournal(b)
	}
}

// maxText is how much of a journal's words is shown, in characters, and maxAddrs
// how many addresses.
const (
	maxText  = 512
	maxAddrs = 4096
)

func (m *Machine) takeJournal(b []byte) {
	for line := range bytes.Lines(b) {
		var r Record
		if line[len(line)-1] != '\n' || json.Unmarshal(line, &r) != nil {
			continue
		}
		// A process that its guest has taken could steer the reader's terminal.
		r.Text = Short(r.Text, maxText)
		r.Addrs = r.Addrs[:min(len(r.Addrs), maxAddrs)]
		for i, a := range r.Addrs {
			r.Addrs[i] = Short(a, maxText)
		}
		// The end is the end: word that the guest was ready may come in behind it,
		// as it is written beside the guest's run.
		if m.Last.State != Ended {
			m.Last = r
		}
		switch r.State {
		case Running:
			m.Started, m.Addrs = r.Time, r.Addrs
		case Ready:
			m.Ready = true
		}
	}
}

// State tells where the machine is, from its files.
func (m *Machine) State() State {
	switch {
	case m.Alive && m.Last.State == "":
		return Starting
	case m.Alive && (m.Last.State == Ready || m.Last.State == Ended):
		return Running // what has ended is about to go
	case m.Alive || m.Last.State == Ended:
		return m.Last.State
	}
	return Dead
}

// How tells how a machine that is over ended, in a few words.
func (m *Machine) How() string {
	switch {
	case m.Last.State != Ended:
		return "its process was killed"
	case m.Last.Text == "":
		return fmt.Sprintf("status %d", m.Last.Status)
	}
	return m.Last.Text
}
