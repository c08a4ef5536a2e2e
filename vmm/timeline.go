package vmm

import (
	"sync"
	"time"
)

// Moment is a point in a machine's start.
type Moment struct {
	Name string
	At   time.Time // with Go's monotonic reading
}

// maxMoments bounds what a guest that writes the mark port can make us keep.
const maxMoments = 256

// timeline collects moments; names are constants, marks are numbered.
type timeline struct {
	mu      sync.Mutex
	moments []Moment
}

func (t *timeline) add(name string, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.moments) < maxMoments {
		t.moments = append(t.moments, Moment{name, at})
	}
}

func (t *timeline) all() []Moment {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Moment(nil), t.moments...)
}
