package ffs

// allocator hands out blocks, and parts of blocks for the ends of small files.
// It counts data blocks from 0 and does not know where they are, so that the
// plan, which must find out how large the file system has to be, and the pass
// that writes it make the same decisions.
type allocator struct {
	frag int
	next int64            // blocks handed out
	part [maxFrag][]int64 // part[r] has the blocks of which the last r fragments are free
}

// blocks hands out n whole blocks and gives the first one's number.
func (a *allocator) blocks(n int64) int64 {
	first := a.next
	a.next += n
	return first
}

// tail hands out n fragments in a row, fewer than a block has: the tightest place
// that there is. first is the place of the first one within the block.
func (a *allocator) tail(n int) (block int64, first int) {
	for r := n; r < a.frag; r++ {
		if last := len(a.part[r]) - 1; last >= 0 {
			block = a.part[r][last]
			a.part[r] = a.part[r][:last]
			a.keep(block, r-n)
			return block, a.frag - r
		}
	}
	block = a.blocks(1)
	a.keep(block, a.frag-n)
	return block, 0
}

func (a *allocator) keep(block int64, free int) {
	if free > 0 {
		a.part[free] = append(a.part[free], block)
	}
}
