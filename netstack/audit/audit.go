// Package audit writes what a machine's owner wants to know afterwards: that it
// was created and ended, and what it was kept from reaching. One event is one
// line of JSON, in ASCII, whatever a hostile guest puts into a name.
package audit

import (
	"errors"
	"io"
	"sync"
	"time"
)

// The kinds of events.
const (
	MachineCreated = "machine-created"
	MachineEnded   = "machine-ended"
	EgressDenied   = "egress-denied"
	// Lost stands for Count events that were not written, since there were too many
	// or the writer was too slow. They are counted, not described.
	Lost = "lost"
)

// Event is a line of the log. Empty fields are left out.
type Event struct {
	Time    time.Time `json:"time"`              // when it happened, of the first if folded; Emit fills in zero
	Event   string    `json:"event"`             // the kind
	Machine string    `json:"machine,omitempty"` // its name; the Writer fills in its own
	Name    string    `json:"name,omitempty"`    // what DNS knows the address as, or what a query asked for
	Address string    `json:"address,omitempty"` // without port
	Port    uint16    `json:"port,omitempty"`    // at the address
	Proto   string    `json:"proto,omitempty"`   // "tcp", "udp", "icmp", "dns"
	Reason  string    `json:"reason,omitempty"`

	// Count is how often it happened: a denial that has been written is not
	// written again within FoldFor, then one line tells of all that followed,
	// Time being the first of those and Last the last.
	Count int        `json:"count,omitempty"`
	Last  *time.Time `json:"last,omitempty"`
}

const (
	// FoldFor is how long identical denials are folded into one line.
	FoldFor = 30 * time.Second
	// maxKinds bounds different denials in FoldFor, at two lines each: whatever a
	// guest does, the log grows by some 2 KB a second and usually far less.
	maxKinds = 128
	// maxQueue bounds what waits for a slow writer.
	maxQueue = 1024
	// maxField bounds a text field, in bytes: a DNS name has 255, a reason names a rule.
	maxField = 512
	// closeWait is how long Close waits for a writer that does not return.
	closeWait = 5 * time.Second
)

// Writer writes events to an io.Writer from a goroutine of its own. A nil one
// takes events and writes nothing.
type Writer struct {
	machine string
	out     io.Writer
	wake    chan struct{} // room for one: something is queued or Close was called
	done    chan struct{}

	mu     sync.Mutex // never held while out is called
	queue  []Event
	folded map[Event]*fold
	lost   int
	closed bool
	err    error
}

// fold is a denial that was written and may have come again.
type fold struct {
	until       time.Time
	count       int
	first, last time.Time
}

// ErrSlow is Close's where the writer did not take the rest in time.
var ErrSlow = errors.New("audit: the log's writer did not take the last events in time")

// NewWriter writes to out, which is not closed, what happens to the machine of this name.
func NewWriter(out io.Writer, machine string) *Writer {
	w := &Writer{machine: machine, out: out, wake: make(chan struct{}, 1), done: make(chan struct{}), folded: map[Event]*fold{}}
	go w.run()
	return w
}

// Emit takes an event. It never waits for the io.Writer: what there is no room for
// is counted as lost, and the count is written.
func (w *Writer) Emit(e Event) {
	if w == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.Machine == "" {
		e.Machine = w.machine
	}
	for _, s := range []*string{&e.Event, &e.Machine, &e.Name, &e.Address, &e.Proto, &e.Reason} {
		*s = cut(*s)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	if e.Event == EgressDenied && w.fold(e) {
		return
	}
	w.push(e)
}

// Close writes what is left, folded counts included, and gives the io.Writer's
// first error. Events that come later are dropped.
func (w *Writer) Close() error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.signal()
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-w.done:
	case <-t.C:
		return ErrSlow
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// fold says whether the denial is one that was written a short time ago, or
// one too many; it is counted then. mu is held.
func (w *Writer) fold(e Event) bool {
	key := e
	key.Time, key.Count, key.Last = time.Time{}, 0, nil
	f := w.folded[key]
	if f == nil {
		if len(w.folded) >= maxKinds {
			w.lost++
			return true
		}
		w.folded[key] = &fold{until: e.Time.Add(FoldFor)}
		return false
	}
	if f.count++; f.count == 1 {
		f.first = e.Time
	}
	f.last = e.Time
	return true
}

// push queues an event, or counts it as lost. mu is held.
func (w *Writer) push(e Event) {
	// Denials leave the last quarter to the machine's own life.
	if limit := maxQueue; len(w.queue) >= limit || e.Event == EgressDenied && len(w.queue) >= limit-limit/4 {
		w.lost += max(e.Count, 1)
		return
	}
	w.queue = append(w.queue, e)
	w.signal()
}

// unfold queues the counts of what was folded until now, or all of them; the
// queue is empty, and maxKinds and one fit into it. mu is held.
func (w *Writer) unfold(now time.Time, all bool) {
	for key, f := range w.folded {
		if !all && now.Before(f.until) {
			continue
		}
		delete(w.folded, key)
		if f.count == 0 {
			continue
		}
		e, last := key, f.last
		e.Time, e.Count, e.Last = f.first, f.count, &last
		w.push(e)
	}
	if w.lost > 0 {
		w.push(Event{Time: now, Event: Lost, Machine: w.machine, Count: w.lost})
		w.lost = 0
	}
}

func (w *Writer) run() {
	defer close(w.done)
	// The timer runs only while there is something to unfold: an idle machine
	// wakes nobody.
	timer := time.NewTimer(FoldFor)
	timer.Stop()
	armed := false
	for {
		expired := false
		select {
		case <-w.wake:
		case <-timer.C:
			armed, expired = false, true
		}
		for {
			w.mu.Lock()
			batch, closed := w.queue, w.closed
			w.queue = nil
			if closed || expired {
				expired = false
				w.unfold(time.Now(), closed) // into a queue that has room
				batch, w.queue = append(batch, w.queue...), nil
			}
			if later := len(w.folded) > 0 || w.lost > 0; later && !armed && !closed {
				timer.Reset(FoldFor)
				armed = true
			}
			w.mu.Unlock()
			w.write(batch)
			if closed {
				timer.Stop()
				return
			}
			if len(batch) == 0 {
				break
			}
		}
	}
}

func (w *Writer) write(batch []Event) {
	for _, e := range batch {
		if _, err := w.out.Write(line(e)); err != nil {
			w.mu.Lock()
			if w.err == nil {
				w.err = err
			}
			w.mu.Unlock()
		}
	}
}
