package net

import (
	"encoding/binary"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
)

// ctrlWorker obeys the commands of the control queue (VirtIO 1.2 §5.1.6.5).
type ctrlWorker struct {
	d     *Device
	r     *run
	queue *devices.Queue

	cmd [ctrlHeader + 6]byte // the longest command that is no table
	// The tables of a command, copied out before they are judged.
	raw   [maxAddrs * 6]byte
	uni   [maxAddrs]macAddr
	multi [maxAddrs]macAddr
	ack   [1]byte
}

func (w *ctrlWorker) run() {
	for w.drain() && w.r.sleep(w.queue) {
	}
}

func (w *ctrlWorker) drain() bool {
	q := w.queue
	for {
		q.DisableKicks()
		for {
			if w.r.stop.Load() {
				return false
			}
			c, err := q.Pop()
			if err != nil {
				w.r.fail(err)
				return false
			}
			if c == nil {
				break
			}
			q.Push(c.Head(), w.serve(c))
			if q.Publish() {
				w.r.act.Driver.Used()
			}
		}
		if !q.EnableKicks() {
			return true
		}
	}
}

// serve does one command and gives the number of bytes written into its chain. A
// command without room for an answer is not obeyed.
func (w *ctrlWorker) serve(c *virtq.Chain) uint32 {
	w.ack[0] = ackErr
	if c.WriteLen() > 0 && c.CopyOut(w.cmd[:ctrlHeader], 0) == ctrlHeader && w.obey(c, c.ReadLen()-ctrlHeader) {
		w.ack[0] = ackOK
		w.d.stats.ctrlDone.Add(1)
	} else {
		w.d.stats.ctrlRefused.Add(1)
	}
	return uint32(c.CopyIn(w.ack[:], 0))
}

// obey does the command in w.cmd, which has n bytes of data, and says whether it
// was one that the driver may give.
func (w *ctrlWorker) obey(c *virtq.Chain, n uint64) bool {
	has := func(bit uint64) bool { return w.r.act.Features&bit != 0 }
	switch [2]byte{w.cmd[0], w.cmd[1]} {
	case [2]byte{classRX, rxPromisc}:
		return has(featureCtrlRX) && w.setMode(c, n, &w.d.filter.promisc)
	case [2]byte{classRX, rxAllMulti}:
		return has(featureCtrlRX) && w.setMode(c, n, &w.d.filter.allMulti)
	case [2]byte{classMAC, macTableSet}:
		return has(featureCtrlRX) && w.setTables(c, n)
	case [2]byte{classMAC, macAddrSet}:
		return has(featureCtrlMACAddr) && w.setMAC(c, n)
	case [2]byte{classMQ, mqPairsSet}:
		return has(featureMQ) && w.setPairs(c, n)
	}
	return false
}

// data copies the command's data out, all of it.
func (w *ctrlWorker) data(c *virtq.Chain, n, want uint64) []byte {
	if n != want {
		return nil
	}
	c.CopyOut(w.cmd[ctrlHeader:ctrlHeader+want], ctrlHeader)
	return w.cmd[ctrlHeader : ctrlHeader+want]
}

// setMode is a switch of §5.1.6.5.1.
func (w *ctrlWorker) setMode(c *virtq.Chain, n uint64, mode *bool) bool {
	b := w.data(c, n, 1)
	if b == nil {
		return false
	}
	w.d.receive.Lock()
	defer w.d.receive.Unlock()
	*mode = b[0] != 0
	return true
}

// setMAC is VIRTIO_NET_CTRL_MAC_ADDR_SET of §5.1.6.5.2.
func (w *ctrlWorker) setMAC(c *virtq.Chain, n uint64) bool {
	b := w.data(c, n, 6)
	if b == nil || !macOf(b).unicast() {
		return false
	}
	w.d.receive.Lock()
	defer w.d.receive.Unlock()
	w.d.mac.Store(uint64(macOf(b)))
	return true
}

// setTables is VIRTIO_NET_CTRL_MAC_TABLE_SET of §5.1.6.5.2: both tables, or none.
func (w *ctrlWorker) setTables(c *virtq.Chain, n uint64) bool {
	uni, uniAll, used, ok := w.readTable(c, w.uni[:0], 0, n)
	if !ok {
		return false
	}
	multi, multiAll, used2, ok := w.readTable(c, w.multi[:0], used, n)
	if !ok || used+used2 != n {
		return false
	}
	w.d.receive.Lock()
	defer w.d.receive.Unlock()
	f := &w.d.filter
	f.uni = table{uniAll, append(f.uni.addrs[:0], uni...)}
	f.multi = table{multiAll, append(f.multi.addrs[:0], multi...)}
	return true
}

// readTable copies a table out of the data at off: a le32 number and as many
// addresses. Of one that is too long it gives none, and all.
func (w *ctrlWorker) readTable(c *virtq.Chain, dst []macAddr, off, n uint64) (addrs []macAddr, all bool, used uint64, ok bool) {
	var count [4]byte
	if n-off < 4 {
		return nil, false, 0, false
	}
	c.CopyOut(count[:], ctrlHeader+off)
	entries := uint64(binary.LittleEndian.Uint32(count[:]))
	if used = 4 + 6*entries; used > n-off {
		return nil, false, 0, false
	}
	if entries > maxAddrs {
		return nil, true, used, true
	}
	b := w.raw[:6*entries]
	c.CopyOut(b, ctrlHeader+off+4)
	for ; len(b) > 0; b = b[6:] {
		dst = append(dst, macOf(b))
	}
	return dst, false, used, true
}

// setPairs is VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET of §5.1.6.5.6.
func (w *ctrlWorker) setPairs(c *virtq.Chain, n uint64) bool {
	b := w.data(c, n, 2)
	if b == nil {
		return false
	}
	pairs := int(binary.LittleEndian.Uint16(b))
	if pairs < 1 || pairs > w.d.pairs || !enabled(w.r.act.Queues, pairs) {
		return false
	}
	w.d.receive.Lock()
	w.d.active.Store(uint32(pairs))
	w.d.receive.Unlock()
	// A frame that waits for buffers of a pair that is no longer used goes on.
	w.r.wake()
	return true
}
