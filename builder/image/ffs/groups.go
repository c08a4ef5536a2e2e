package ffs

import "slices"

// tables writes what is known at the end: the groups' blocks, their summaries,
// and the superblock with its copies.
func (w *writer) tables() error {
	g := &w.geo
	var partial []place
	for free, blocks := range w.alloc.part {
		for _, b := range blocks {
			partial = append(partial, place{g.addr(b), free})
		}
	}
	slices.SortFunc(partial, func(a, b place) int { return int(min(1, max(-1, a.addr-b.addr))) })

	summaries := make([]byte, g.summaryBytes)
	var total summary
	data, file := int64(0), 0 // the first data block and the first file of the group
	buf := make([]byte, g.block)
	for n := range g.groups {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		base := n * g.fragsPerGroup
		in := 0
		for in < len(partial) && partial[in].addr < base+g.fragsPerGroup {
			in++
		}
		c := cylinder{geo: g, number: n, buf: buf}
		// The group's inodes: those in use are its first ones.
		used := min(max(rootInode+int64(len(w.files))-n*g.inodesPerGroup, 0), g.inodesPerGroup)
		for last := min(int64(len(w.files)), (n+1)*g.inodesPerGroup-rootInode); int64(file) < last; file++ {
			if w.files[file].parent != 0 {
				c.sum.dirs++
			}
		}
		c.fill(used, max(w.need-data, 0), partial[:in], w.time)
		data += g.before(n) + (g.end(n)-g.first(n))/int64(g.frag)
		partial = partial[in:]
		c.sum.put(summaries, int(n)*summarySize)
		total.add(c.sum)
		if err := w.put(base+g.groupFrag, buf[:g.groupBytes]); err != nil {
			return err
		}
	}
	if err := w.put(g.dataFrag, summaries); err != nil {
		return err
	}
	super := w.super(total)
	for n := range g.groups {
		if err := w.put(n*g.fragsPerGroup+g.superFrag, super); err != nil {
			return err
		}
	}
	// Last, so that what is not complete is no file system.
	return w.put(superOffset/int64(g.fragment), super)
}

// place is a block of which the last fragments are free.
type place struct {
	addr int64
	free int
}

// cylinder is a group's block: struct cg and its bitmaps.
type cylinder struct {
	geo    *geometry
	number int64
	buf    []byte
	sum    summary

	freeOff, sumOff, clusterOff int
}

// fill makes the block. used inodes, the first ones, are in use, and of the data
// blocks the first ones too; of those in partial the last fragments are free.
func (c *cylinder) fill(used, data int64, partial []place, time int64) {
	g, b := c.geo, c.buf
	clear(b)
	frags := g.end(c.number)
	inodeOff := groupHeader
	c.freeOff = inodeOff + int(ceilDiv(g.inodesPerGroup, 8))
	// The sums are counted from 1, so their first word lies over the end of the
	// bitmap before them.
	c.sumOff = roundUp(c.freeOff+int(ceilDiv(g.fragsPerGroup, 8))-4, 4)
	c.clusterOff = c.sumOff + (g.clusters+1)*4

	put32(b, 4, int(groupMagic))
	put32(b, 12, c.number)
	put32(b, 20, frags)
	put32(b, 92, inodeOff)
	put32(b, 96, c.freeOff)
	put32(b, 100, c.clusterOff+int(ceilDiv(g.fragsPerGroup/int64(g.frag), 8)))
	put32(b, 104, c.sumOff)
	put32(b, 108, c.clusterOff)
	put32(b, 112, frags/int64(g.frag))
	put32(b, 116, g.inodesPerGroup)
	// cg_initediblk: inodes behind it need not be valid; newfs begins with two blocks.
	put32(b, 120, min(g.inodesPerGroup, max(roundUp(used, int64(g.inodesPerBlock)), int64(2*g.inodesPerBlock))))
	put64(b, 136, time)

	setBits(b[inodeOff:], 0, used)
	c.sum.freeInodes = g.inodesPerGroup - used

	frag := int64(g.frag)
	first := g.first(c.number)
	if rest := g.summaryBytes / int64(g.fragment) % frag; c.number == 0 && rest != 0 {
		c.frags(first-frag, int(frag-rest))
	}
	base := c.number * g.fragsPerGroup
	for _, p := range partial {
		c.frags(p.addr-base, p.free)
	}
	// Data is in front of the tables and behind them.
	before := g.before(c.number)
	c.blocks(min(data, before), before)
	c.blocks(first/frag+max(data-before, 0), frags/frag)
	c.sum.put(b, 24)
}

// frags marks the last fragments of a block as free.
func (c *cylinder) frags(at int64, free int) {
	frag := int64(c.geo.frag)
	setBits(c.buf[c.freeOff:], at+frag-int64(free), at+frag)
	off := 52 + 4*free // cg_frsum[free]
	put32(c.buf, off, le.Uint32(c.buf[off:])+1)
	c.sum.freeFrags += int64(free)
}

// blocks marks a run of whole blocks as free.
func (c *cylinder) blocks(from, to int64) {
	if from >= to {
		return
	}
	frag := int64(c.geo.frag)
	setBits(c.buf[c.freeOff:], from*frag, to*frag)
	setBits(c.buf[c.clusterOff:], from, to)
	off := c.sumOff + 4*int(min(to-from, int64(c.geo.clusters)))
	put32(c.buf, off, le.Uint32(c.buf[off:])+1)
	c.sum.freeBlocks += to - from
}

// setBits sets the bits of a bitmap from one up to another.
func setBits(b []byte, from, to int64) {
	for ; from < to; from++ {
		if from%8 == 0 && to-from >= 8 {
			b[from/8] = 0xff
			from += 7
			continue
		}
		b[from/8] |= 1 << (from % 8)
	}
}
