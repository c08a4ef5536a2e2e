package main

import (
	"sync"
	"syscall"

	"github.com/smolvmm/smolvmm/vmm/agent/agentd"
)

// children are processes that someone other than the supervisor waits for. As
// process 1 reaps whatever ends, their ends come from there.
type children struct {
	mu      sync.Mutex
	waiting map[int]chan<- syscall.WaitStatus
}

// start starts a process. The lock is held over the start: its end may come
// before its number is known.
func (c *children) start(spec agentd.Spec) (pid int, ended <-chan syscall.WaitStatus, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pid, err = spec.Start(); err != nil {
		return 0, nil, err
	}
	ch := make(chan syscall.WaitStatus, 1)
	if c.waiting == nil {
		c.waiting = map[int]chan<- syscall.WaitStatus{}
	}
	c.waiting[pid] = ch
	return pid, ch, nil
}

// ended tells of a process that has been reaped; orphans are nobody's.
func (c *children) ended(ch child) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waiting[ch.pid]; w != nil {
		w <- ch.status
		delete(c.waiting, ch.pid)
	}
}
