package vmm

import (
	"strconv"
	"sync"
	"time"
)

// Moment is a point in a machine's start.
type Moment struct {
	Name string
	At   time.Time // with Go's monotonic reading
}

// maxMoments bounds what a guest that writes the mark port can make us keep;
// ownMoments of them are for the monitor's own, which such a guest cannot crowd out.
const (
	maxMoments = 272
	ownMoments = 16
)

// timeline collects moments; names are constants, marks are numbered.
type timeline struct {
	mu      sync.Mutex
	moments []Moment
}

func (t *timeline) add(name string, at time.Time) { t.keep(name, at, maxMoments) }

// mark adds a moment of the guest's.
func (t *timeline) mark(value byte, at time.Time) {
	t.keep("mark "+strconv.Itoa(int(value)), at, maxMoments-ownMoments)
}

func (t *timeline) keep(name string, at time.Time, limit int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.moments) < limit {
		t.moments = append(t.moments, Moment{name, at})
	}
}

func (t *timeline) all() []Moment {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Moment(nil), t.moments...)
}
