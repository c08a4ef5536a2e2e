package api

import (
	"net/http"
	"sync"
	"time"

	"github.com/smolvmm/smolvmm/vmm/client"
)

// keptEvents is how many events are kept for those who come late or read
// slowly: pauses and resumptions of some minutes.
const keptEvents = 256

// eventLog keeps the latest events. Readers remember a number, so that a slow one
// costs nothing.
type eventLog struct {
	mu      sync.Mutex
	events  []client.Event // the last of them, in order
	next    uint64         // the number of the next
	changed chan struct{}  // closed when there is a new one
}

func newEventLog() *eventLog { return &eventLog{next: 1, changed: make(chan struct{})} }

func (l *eventLog) add(e client.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Seq, e.Time = l.next, time.Now().UTC()
	l.next++
	if len(l.events) == keptEvents {
		l.events = append(l.events[:0], l.events[1:]...)
	}
	l.events = append(l.events, e)
	close(l.changed)
	l.changed = make(chan struct{})
}

// since gives the events from number seq on, and what is closed when there are
// more. Where some are not kept any more, the first says so.
func (l *eventLog) since(seq uint64) (events []client.Event, next uint64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.next - uint64(len(l.events))
	if seq < first && len(l.events) > 0 {
		events = append(events, client.Event{Seq: first - 1, Time: l.events[0].Time, Event: client.EventLost})
		seq = first
	}
	for _, e := range l.events {
		if e.Seq >= seq {
			events = append(events, e)
		}
	}
	return events, l.next, l.changed
}

// eventTimeout is how long a reader may take for what it is sent.
const eventTimeout = 10 * time.Second

// streamEvents sends events as lines of JSON until the machine has ended.
func (s *Server) streamEvents(c *call) (any, error) {
	c.w.Header().Set("Content-Type", "application/jsonl")
	c.w.WriteHeader(http.StatusOK)
	seq := uint64(1)
	for {
		events, next, changed := s.events.since(seq)
		seq = next
		var b []byte
		for _, e := range events {
			text, err := line(e)
			if err != nil {
				return answered, nil
			}
			b = append(b, text...)
		}
		_ = c.rc.SetWriteDeadline(time.Now().Add(eventTimeout))
		if _, err := c.w.Write(b); err != nil || c.rc.Flush() != nil {
			s.counters.slow.Add(1)
			return answered, nil
		}
		if n := len(events); n > 0 && events[n-1].Event == client.EventEnded {
			return answered, nil
		}
		select {
		case <-changed:
		case <-c.Context().Done():
			return answered, nil
		case <-s.closing:
			if _, now, _ := s.events.since(seq); now == seq {
				return answered, nil
			}
		}
	}
}
