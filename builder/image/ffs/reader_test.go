package ffs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"reflect"
)

// A reader of UFS2 and a check of all its tables, written from the structures of
// NetBSD's fs.h, dinode.h and dir.h and from what fsck_ffs(8) says it checks. It
// shares nothing with what writes.

type diskSuper struct {
	First, Unused                     int32
	Sblkno, Cblkno, Iblkno, Dblkno    int32
	OldCgoffset, OldCgmask            int32
	OldTime, OldSize, OldDsize        int32
	Ncg, Bsize, Fsize, Frag           int32
	Minfree, OldRotdelay, OldRps      int32
	Bmask, Fmask, Bshift, Fshift      int32
	Maxcontig, Maxbpg                 int32
	Fragshift, Fsbtodb, Sbsize        int32
	Spare1                            [2]int32
	Nindir, Inopb                     uint32
	OldNspf, Optim                    int32
	OldNpsect, OldInterleave, OldSkew int32
	ID                                [2]int32
	OldCsaddr, Cssize, Cgsize, Spare2 int32
	OldNsect, OldSpc, OldNcyl, OldCpg int32
	Ipg, Fpg                          int32
	OldTotal                          [4]int32
	Fmod, Clean, Ronly, OldFlags      uint8
	Fsmnt                             [468]byte
	Volname                           [32]byte
	Swuid                             uint64
	Pad, Cgrotor                      int32
	Pointers                          [16]uint64
	OldCpc, Maxbsize                  int32
	Journal                           [10]uint32
	Quota                             [6]uint32
	Sparecon64                        [9]int64
	Sblockloc                         int64
	Total                             [4]int64
	TotalSpare                        [4]int64
	Time, Size, Dsize, Csaddr         int64
	Pendingblocks                     int64
	Pendinginodes                     int32
	Snapinum                          [20]int32
	Avgfilesize, Avgfpdir, SaveCgsize int32
	Sparecon32                        [26]int32
	Flags                             uint32
	Contigsumsize, Maxsymlinklen      int32
	OldInodefmt                       int32
	Maxfilesize                       uint64
	Qbmask, Qfmask                    int64
	State, OldPostblformat, OldNrpos  int32
	Spare5                            [2]int32
	Magic                             uint32
}

type diskGroup struct {
	First, Magic, OldTime, Cgx      int32
	OldNcyl, OldNiblk               int16
	Ndblk                           int32
	Sum                             [4]int32 // directories, free blocks, free inodes, free fragments
	Rotor, Frotor, Irotor           int32
	Frsum                           [8]int32
	OldBtotoff, OldBoff             int32
	Iusedoff, Freeoff, Nextfreeoff  int32
	Clustersumoff, Clusteroff       int32
	Nclusterblks, Niblk, Initediblk int32
	Sparecon32                      [3]int32
	Time                            int64
	Sparecon64                      [3]int64
}

type diskInode struct {
	Mode                           uint16
	Nlink                          int16
	UID, GID, Blksize              uint32
	Size, Blocks                   uint64
	Atime, Mtime, Ctime, Birthtime int64
	Mtimensec, Atimensec           int32
	Ctimensec, Birthnsec           int32
	Gen                            int32
	Kernflags, Flags               uint32
	Extsize                        int32
	Extb                           [2]int64
	DB                             [12]int64
	IB                             [3]int64
	Modrev                         uint64
	Spare                          [2]int64
}

type disk struct {
	r  io.ReaderAt
	sb diskSuper
}

func (d *disk) bytes(addr int64, n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := d.r.ReadAt(b, addr*int64(d.sb.Fsize))
	return b, err
}

func decode(b []byte, v any) error { return binary.Read(bytes.NewReader(b), binary.LittleEndian, v) }

// openDisk reads the superblock and holds it to what the kernel's
// ffs_superblock_validate and fsck's setup demand.
func openDisk(r io.ReaderAt) (*disk, error) {
	d := &disk{r: r}
	b := make([]byte, 8192)
	if _, err := r.ReadAt(b, 65536); err != nil {
		return nil, err
	}
	if err := decode(b, &d.sb); err != nil {
		return nil, err
	}
	s := &d.sb
	if s.Magic != 0x19540119 || s.Sblockloc != 65536 {
		return nil, fmt.Errorf("magic %#x at %d", s.Magic, s.Sblockloc)
	}
	maxfile, per := uint64(s.Bsize)*12-1, uint64(s.Bsize)
	for range 3 {
		per *= uint64(s.Nindir)
		maxfile += per
	}
	log := func(n int32) int32 { return int32(bits.Len32(uint32(n))) - 1 }
	power := func(n int32) bool { return n > 0 && n&(n-1) == 0 }
	for what, ok := range map[string]bool{
		"sbsize":        s.Sbsize >= 1376 && s.Sbsize <= 8192,
		"bsize":         power(s.Bsize) && s.Bsize >= 4096 && s.Bsize <= 65536,
		"fsize":         power(s.Fsize) && s.Fsize >= 512 && s.Fsize <= s.Bsize,
		"not zero":      s.Size > 0 && s.Cssize > 0 && s.Ipg > 0 && s.Fpg > 0 && s.Ncg > 0 && s.Maxbpg > 0,
		"inopb":         s.Inopb == uint32(s.Bsize/256) && s.Nindir == uint32(s.Bsize/8),
		"shifts":        s.Bshift == log(s.Bsize) && s.Fshift == log(s.Fsize) && s.Fragshift == log(s.Frag) && s.Fsbtodb == log(s.Fsize/512),
		"masks":         s.Bmask == ^(s.Bsize-1) && s.Fmask == ^(s.Fsize-1) && s.Qbmask == int64(s.Bsize-1) && s.Qfmask == int64(s.Fsize-1),
		"frag":          s.Frag == s.Bsize/s.Fsize && s.Frag <= 8,
		"cgsize":        s.Cgsize >= 176 && s.Cgsize <= s.Bsize,
		"clean":         s.Clean == 1 && s.Fmod == 0 && s.Ronly == 0,
		"flags":         s.Flags == 0 && s.OldFlags == 0x80,
		"optim":         s.Optim == 0 || s.Optim == 1,
		"minfree":       s.Minfree >= 0 && s.Minfree <= 99 && (s.Minfree >= 5 || s.Optim == 1),
		"maxfilesize":   s.Maxfilesize == maxfile,
		"maxsymlinklen": s.Maxsymlinklen == 120,
		"inodefmt":      s.OldInodefmt == 2,
		"pending":       s.Pendingblocks == 0 && s.Pendinginodes == 0 && s.Snapinum == [20]int32{},
		"cssize":        s.Cssize == (s.Ncg*16+s.Fsize-1)/s.Fsize*s.Fsize && s.Csaddr == int64(s.Dblkno),
		"order":         s.Sblkno >= (65536+8192)/s.Fsize && s.Cblkno >= s.Sblkno+8192/s.Fsize && s.Iblkno == s.Cblkno+s.Frag && s.Dblkno == s.Iblkno+s.Ipg/int32(s.Inopb)*s.Frag,
		"blocks":        s.Sblkno%s.Frag == 0 && s.Cblkno%s.Frag == 0 && s.Fpg%s.Frag == 0 && s.Fpg%8 == 0 && s.Ipg%int32(s.Inopb) == 0,
		"groups":        s.Size > int64(s.Ncg-1)*int64(s.Fpg)+int64(s.Dblkno) && s.Size <= int64(s.Ncg)*int64(s.Fpg),
		"dsize":         s.Dsize == s.Size-int64(s.Sblkno)-int64(s.Ncg)*int64(s.Dblkno-s.Sblkno)-int64(s.Cssize/s.Fsize),
		"clusters":      s.Contigsumsize == min(s.Maxcontig, 16) && s.Maxcontig >= 2,
	} {
		if !ok {
			return nil, fmt.Errorf("superblock: %s: %+v", what, *s)
		}
	}
	for g := range int64(s.Ncg) {
		copied, err := d.bytes(g*int64(s.Fpg)+int64(s.Sblkno), 8192)
		if err != nil || !bytes.Equal(copied, b) {
			return nil, fmt.Errorf("the superblock's copy in group %d differs (%v)", g, err)
		}
	}
	return d, nil
}

func (d *disk) inode(ino uint32) (*diskInode, error) {
	s := &d.sb
	group, n := int64(ino)/int64(s.Ipg), int64(ino)%int64(s.Ipg)
	b := make([]byte, 256)
	if _, err := d.r.ReadAt(b, (group*int64(s.Fpg)+int64(s.Iblkno))*int64(s.Fsize)+n*256); err != nil {
		return nil, err
	}
	i := new(diskInode)
	return i, decode(b, i)
}

// walk calls fn for every block of an inode that is no hole, ascending, and for
// its indirect blocks, with lbn -1.
func (d *disk) walk(i *diskInode, fn func(lbn, addr int64, size int) error) error {
	bs := int64(d.sb.Bsize)
	for n, a := range i.DB {
		size := bs
		if int64(i.Size) < int64(n+1)*bs {
			size = (max(int64(i.Size)-int64(n)*bs, 0) + int64(d.sb.Fsize) - 1) / int64(d.sb.Fsize) * int64(d.sb.Fsize)
		}
		if a != 0 {
			if err := fn(int64(n), a, int(size)); err != nil {
				return err
			}
		}
	}
	first, span := int64(12), int64(1)
	for level, a := range i.IB {
		span *= int64(d.sb.Nindir)
		if a != 0 {
			if err := d.tree(a, level, first, span, fn); err != nil {
				return err
			}
		}
		first += span
	}
	return nil
}

func (d *disk) tree(addr int64, level int, first, span int64, fn func(lbn, addr int64, size int) error) error {
	if err := fn(-1, addr, int(d.sb.Bsize)); err != nil {
		return err
	}
	b, err := d.bytes(addr, int(d.sb.Bsize))
	if err != nil {
		return err
	}
	span /= int64(d.sb.Nindir)
	for n := range int64(d.sb.Nindir) {
		a := int64(binary.LittleEndian.Uint64(b[8*n:]))
		if a == 0 {
			continue
		}
		if level == 0 {
			err = fn(first+n, a, int(d.sb.Bsize))
		} else {
			err = d.tree(a, level-1, first+n*span, span, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// content gives what is in an inode's blocks: all of it, so not for large files.
func (d *disk) content(i *diskInode) ([]byte, error) {
	out := make([]byte, i.Size)
	err := d.walk(i, func(lbn, addr int64, size int) error {
		if lbn < 0 {
			return nil
		}
		b, err := d.bytes(addr, size)
		if err != nil {
			return err
		}
		at := lbn * int64(d.sb.Bsize)
		if at >= int64(len(out)) {
			return errors.New("a block behind the end of the file")
		}
		for _, c := range b[copy(out[at:], b):] {
			if c != 0 {
				return errors.New("not zero behind the end of the file")
			}
		}
		return nil
	})
	return out, err
}

type dirEntry struct {
	name string
	ino  uint32
	typ  uint8
}

// entries reads a directory, and holds every record to the rules of dir.h.
func (d *disk) entries(i *diskInode) ([]dirEntry, error) {
	b, err := d.content(i)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 || len(b)%512 != 0 {
		return nil, fmt.Errorf("a directory of %d bytes", len(b))
	}
	var out []dirEntry
	for ; len(b) > 0; b = b[512:] {
		for at := 0; at < 512; {
			ino, reclen := binary.LittleEndian.Uint32(b[at:]), int(binary.LittleEndian.Uint16(b[at+4:]))
			typ, namlen := b[at+6], int(b[at+7])
			need := 8 + (namlen+1+3)/4*4
			if ino == 0 || namlen == 0 || reclen%4 != 0 || reclen < need || at+reclen > 512 {
				return nil, fmt.Errorf("a record of %d bytes at %d, inode %d, name of %d", reclen, at, ino, namlen)
			}
			for _, c := range b[at+8+namlen : at+reclen] {
				if c != 0 {
					return nil, errors.New("not zero behind a name")
				}
			}
			out = append(out, dirEntry{string(b[at+8 : at+8+namlen]), ino, typ})
			at += reclen
		}
	}
	return out, nil
}

// verify counts every fragment's and inode's owner, every name and every free
// piece, and compares with the tables.
func (d *disk) verify() error {
	s := &d.sb
	used := make([]uint64, (s.Size+63)/64)
	take := func(addr, n int64, what string) error {
		if addr <= 0 || addr+n > s.Size {
			return fmt.Errorf("%s: address %d of %d fragments", what, addr, s.Size)
		}
		for a := addr; a < addr+n; a++ {
			if used[a/64]>>(a%64)&1 != 0 {
				return fmt.Errorf("%s: fragment %d has two owners", what, a)
			}
			used[a/64] |= 1 << (a % 64)
		}
		return nil
	}
	used[0] |= 1 // the first fragment, which take refuses
	if err := take(1, int64(s.Dblkno)-1, "boot area and tables"); err != nil {
		return err
	}
	for g := int64(1); g < int64(s.Ncg); g++ {
		if err := take(g*int64(s.Fpg)+int64(s.Sblkno), int64(s.Dblkno-s.Sblkno), "a group's tables"); err != nil {
			return err
		}
	}
	if err := take(s.Csaddr, int64(s.Cssize/s.Fsize), "summaries"); err != nil {
		return err
	}
	inodes, err := d.reach(take)
	if err != nil {
		return err
	}
	var total [4]int64
	sums, err := d.bytes(s.Csaddr, int(s.Cssize))
	if err != nil {
		return err
	}
	for g := range int64(s.Ncg) {
		sum, err := d.group(g, used, inodes)
		if err != nil {
			return fmt.Errorf("group %d: %w", g, err)
		}
		var got [4]int32
		if err := decode(sums[16*g:], &got); err != nil || got != sum {
			return fmt.Errorf("group %d: summary %v, counted %v (%v)", g, got, sum, err)
		}
		for n, v := range sum {
			total[n] += int64(v)
		}
	}
	if total != s.Total || s.TotalSpare != [4]int64{} {
		return fmt.Errorf("totals %v, counted %v", s.Total, total)
	}
	return nil
}

// reach walks the names from the root, takes all blocks and gives the modes of
// all inodes that it has found.
func (d *disk) reach(take func(addr, n int64, what string) error) (map[uint32]uint16, error) {
	modes, links := map[uint32]uint16{}, map[uint32]int16{}
	counts := map[uint32]int16{}
	type dir struct{ ino, parent uint32 }
	visit := func(ino uint32) (*diskInode, error) {
		i, err := d.inode(ino)
		if err != nil {
			return nil, err
		}
		modes[ino], links[ino] = i.Mode, i.Nlink
		held := uint64(0)
		kind := i.Mode & 0o170000
		if kind == 0o120000 && i.Size < 120 || kind != 0o120000 && kind != 0o100000 && kind != 0o040000 {
			if i.Blocks != 0 {
				return nil, fmt.Errorf("inode %d: %d sectors for no blocks", ino, i.Blocks)
			}
			return i, nil
		}
		last := int64(-1)
		err = d.walk(i, func(lbn, addr int64, size int) error {
			if lbn*int64(d.sb.Bsize) >= int64(i.Size) {
				return errors.New("a block behind the end")
			}
			last = max(last, lbn)
			held += uint64(size / 512)
			if size == int(d.sb.Bsize) && addr%int64(d.sb.Frag) != 0 || addr/int64(d.sb.Frag) != (addr+int64(size)/int64(d.sb.Fsize)-1)/int64(d.sb.Frag) {
				return fmt.Errorf("%d bytes at fragment %d cross a block's border", size, addr)
			}
			return take(addr, int64(size)/int64(d.sb.Fsize), fmt.Sprintf("inode %d, block %d", ino, lbn))
		})
		if err == nil && held != i.Blocks {
			err = fmt.Errorf("it says %d sectors, and has %d", i.Blocks, held)
		}
		if err != nil {
			return nil, fmt.Errorf("inode %d: %w", ino, err)
		}
		return i, nil
	}
	if _, err := visit(2); err != nil {
		return nil, err
	}
	for todo := []dir{{2, 2}}; len(todo) > 0; {
		at := todo[0]
		todo = todo[1:]
		i, err := d.inode(at.ino)
		if err != nil {
			return nil, err
		}
		list, err := d.entries(i)
		if err != nil {
			return nil, fmt.Errorf("directory %d: %w", at.ino, err)
		}
		if len(list) < 2 || list[0] != (dirEntry{".", at.ino, 4}) || list[1] != (dirEntry{"..", at.parent, 4}) {
			return nil, fmt.Errorf("directory %d begins with %v", at.ino, list[:min(2, len(list))])
		}
		names := map[string]bool{}
		for n, e := range list {
			if names[e.name] {
				return nil, fmt.Errorf("directory %d has %q twice", at.ino, e.name)
			}
			names[e.name] = true
			counts[e.ino]++
			if n < 2 {
				continue
			}
			if _, known := modes[e.ino]; !known {
				if _, err := visit(e.ino); err != nil {
					return nil, fmt.Errorf("%q: %w", e.name, err)
				}
				if modes[e.ino]&0o170000 == 0o040000 {
					todo = append(todo, dir{e.ino, at.ino})
				}
			}
			if modes[e.ino]>>12 != uint16(e.typ) {
				return nil, fmt.Errorf("%q: type %d, mode %o", e.name, e.typ, modes[e.ino])
			}
		}
	}
	if !reflect.DeepEqual(counts, links) {
		return nil, fmt.Errorf("link counts %v, counted %v", links, counts)
	}
	return modes, nil
}

// group makes a group's block anew from what was counted and compares.
func (d *disk) group(g int64, used []uint64, modes map[uint32]uint16) (sum [4]int32, err error) {
	s := &d.sb
	b, err := d.bytes(g*int64(s.Fpg)+int64(s.Cblkno), int(s.Cgsize))
	if err != nil {
		return sum, err
	}
	var got diskGroup
	if err := decode(b, &got); err != nil {
		return sum, err
	}
	base := g * int64(s.Fpg)
	want := diskGroup{Magic: 0x090255, Cgx: int32(g), Ndblk: int32(min(int64(s.Fpg), s.Size-base)), Niblk: s.Ipg, Time: s.Time}
	want.Nclusterblks = want.Ndblk / s.Frag
	want.Iusedoff = 168
	want.Freeoff = want.Iusedoff + (s.Ipg+7)/8
	want.Clustersumoff = (want.Freeoff + (s.Fpg+7)/8 - 4 + 3) / 4 * 4
	want.Clusteroff = want.Clustersumoff + (s.Contigsumsize+1)*4
	want.Nextfreeoff = want.Clusteroff + (s.Fpg/s.Frag+7)/8
	if want.Nextfreeoff > s.Cgsize {
		return sum, fmt.Errorf("its bitmaps end at %d of %d bytes", want.Nextfreeoff, s.Cgsize)
	}
	maps := make([]byte, s.Cgsize)
	set := func(off int32, n int64) { maps[int64(off)+n/8] |= 1 << (n % 8) }
	sum[2] = s.Ipg
	high := int64(-1)
	for n := range int64(s.Ipg) {
		mode, ok := modes[uint32(g*int64(s.Ipg)+n)]
		if ok || g == 0 && n < 2 {
			set(want.Iusedoff, n)
			sum[2]--
			high = n
		}
		if mode&0o170000 == 0o040000 {
			sum[0]++
		}
	}
	runs := make([]int32, s.Contigsumsize+1)
	run := int32(0)
	end := func() {
		if run > 0 {
			runs[min(run, s.Contigsumsize)]++
		}
		run = 0
	}
	for at := int64(0); at < int64(want.Ndblk); at += int64(s.Frag) {
		free, row := 0, 0
		var rows []int
		for f := at; f < at+int64(s.Frag); f++ {
			if used[(base+f)/64]>>((base+f)%64)&1 == 0 {
				set(want.Freeoff, f)
				free++
				row++
				continue
			}
			rows, row = append(rows, row), 0
		}
		rows = append(rows, row)
		if free == int(s.Frag) {
			sum[1]++
			set(want.Clusteroff, at/int64(s.Frag))
			run++
			continue
		}
		end()
		sum[3] += int32(free)
		for _, n := range rows {
			if n > 0 {
				want.Frsum[n]++
			}
		}
	}
	end()
	for n := int32(1); n <= s.Contigsumsize; n++ {
		binary.LittleEndian.PutUint32(maps[want.Clustersumoff+4*n:], uint32(runs[n]))
	}
	want.Sum = sum
	want.Initediblk = got.Initediblk
	if i := int64(got.Initediblk); i <= high || i%int64(s.Inopb) != 0 || i > int64(s.Ipg) || i < min(int64(s.Ipg), 2*int64(s.Inopb)) {
		return sum, fmt.Errorf("inodes are valid up to %d; %d is in use", i, high)
	}
	if got != want {
		return sum, fmt.Errorf("header %+v, counted %+v", got, want)
	}
	if !bytes.Equal(b[168:], maps[168:]) {
		return sum, errors.New("bitmaps or cluster sums differ from what is counted")
	}
	return sum, nil
}
