package boot

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// Milestone is a line that a kernel printed with its own clock in front, as NetBSD and Linux do: "[ 1.0863218] text".
type Milestone struct {
	At    time.Duration `json:"at_ns"`  // from before the fork to when the line's first byte was here
	Clock float64       `json:"kernel"` // what the kernel's clock said, in seconds
	Text  string        `json:"text"`   // what stands behind it
}

// Bounds on what is kept of a guest's words.
const (
	maxMilestones     = 200
	maxMilestoneBytes = 120
)

// chunk is a piece of output: out[:end] was here at that time.
type chunk struct {
	end int
	at  time.Duration
}

// milestones finds the lines with a clock in out[from:]. chunks are in order.
func milestones(out []byte, from int, chunks []chunk) (ms []Milestone) {
	at := from
	for line := range bytes.Lines(out[min(from, len(out)):]) {
		start := at
		at += len(line)
		text, ok := bytes.CutPrefix(line, []byte("["))
		if !ok {
			continue
		}
		clock, text, ok := bytes.Cut(text, []byte("]"))
		seconds, err := strconv.ParseFloat(strings.TrimSpace(string(clock)), 64)
		if !ok || err != nil || seconds < 0 || seconds > 1e9 {
			continue
		}
		for len(chunks) > 0 && chunks[0].end <= start {
			chunks = chunks[1:]
		}
		if len(chunks) == 0 || len(ms) == maxMilestones {
			break
		}
		text = bytes.TrimSpace(text)
		ms = append(ms, Milestone{chunks[0].at, seconds, string(text[:min(len(text), maxMilestoneBytes)])})
	}
	return ms
}

// steps are the milestones of a NetBSD kernel that the parts of its start end with: how the line begins, and what it tells.
var steps = [...]struct{ begins, what string }{
	{"NetBSD ", "the kernel's name, its memory and console are up"},
	{"mainbus0 (root)", "it looks for devices"},
	{"boot device:", "devices are there"},
	{"root file system type:", "the root file system is mounted"},
}

// step is the first milestone whose text begins so.
func (s *Sample) step(begins string) *Milestone {
	for i := range s.Milestones {
		if strings.HasPrefix(s.Milestones[i].Text, begins) {
			return &s.Milestones[i]
		}
	}
	return nil
}
