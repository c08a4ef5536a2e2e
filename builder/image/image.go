// Package image makes disk images for NetBSD guests from a tree: a bare file
// system or one in a partition.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/smolvmm/smolvmm/builder/image/ffs"
	"github.com/smolvmm/smolvmm/builder/image/gpt"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// Layouts of an image.
const (
	// FFS is a file system from the first byte to the last. NetBSD finds no
	// label on such a disk and makes partition a of the whole of it, so that it
	// is ld0a, whatever size the disk has been given since
	// (sys/kern/subr_disk_mbr.c: readdisklabel). A label written here would be
	// in the way of that and add nothing.
	FFS = "ffs"
	// GPT is a disk with one partition, which NetBSD knows as the wedge
	// NAME=label.
	GPT = "gpt"
)

// DefaultLabel is the name of GPT's partition where none is given.
const DefaultLabel = "root"

// Options say what image is made. Sizes are in bytes.
type Options struct {
	Layout string // FFS or GPT; "" is FFS
	Label  string // of the file system and of GPT's partition: see ffs.MaxLabel

	// Size is the image's size, partition tables included. With Minimize it is
	// the most it may have.
	Size     int64
	Minimize bool  // as small as the contents and Free allow
	Free     int64 // see ffs.Options.Free

	FreeInodes, Density int64     // see ffs.Options
	Time                time.Time // when it was made; the zero Time: the newest in the tree
}

// Info tells of an image.
type Info struct {
	Size   int64  // bytes
	Layout string // FFS or GPT
	Root   string // what the kernel's root= names: ld0a or NAME=label, where it is the first disk
	Offset int64  // of the file system in the image, in bytes
	FS     ffs.Info
}

// Build makes the image of a tree in a file: whatever was in it is gone. Holes and
// free space are holes in the file. The same tree and options give the same
// bytes. It does not sync. After an error, the end of ctx too, the file has half
// an image.
func Build(ctx context.Context, f *os.File, t *tree.Tree, o Options) (Info, error) {
	p, err := o.plan(t)
	if err != nil {
		return Info{}, err
	}
	if err := errors.Join(f.Truncate(0), f.Truncate(p.info.Size)); err != nil {
		return Info{}, err
	}
	if err := p.fs.Write(ctx, io.NewOffsetWriter(f, p.info.Offset)); err != nil {
		return Info{}, err
	}
	if p.disk != nil {
		if err := gpt.Write(f, *p.disk); err != nil {
			return Info{}, err
		}
	}
	return p.info, nil
}

// Plan tells what Build will make. It reads no contents.
func Plan(t *tree.Tree, o Options) (Info, error) {
	p, err := o.plan(t)
	if err != nil {
		return Info{}, err
	}
	return p.info, nil
}

// Create makes the image of a tree in a file of that name, mode 0600. The name
// is there when the image is complete and on the disk, and not before; what had
// the name is replaced then.
func Create(ctx context.Context, name string, t *tree.Tree, o Options) (info Info, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".image-*")
	if err != nil {
		return Info{}, err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err == nil {
			err = os.Rename(f.Name(), name)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if info, err = Build(ctx, f, t, o); err != nil {
		return Info{}, err
	}
	return info, f.Sync()
}

// planned is an image before its first byte.
type planned struct {
	info Info
	fs   *ffs.Layout
	disk *gpt.Disk // nil without a partition table
}

func (o Options) plan(t *tree.Tree) (*planned, error) {
	fo := ffs.Options{
		Size: o.Size, Minimize: o.Minimize, Free: o.Free,
		FreeInodes: o.FreeInodes, Density: o.Density, Label: o.Label, Time: o.Time,
	}
	if o.Size%gpt.Sector != 0 {
		return nil, fmt.Errorf("an image of %d bytes: want a multiple of %d", o.Size, gpt.Sector)
	}
	switch o.Layout {
	case "", FFS:
		l, err := ffs.Plan(t, fo)
		if err != nil {
			return nil, err
		}
		p := &planned{info: Info{Layout: FFS, Root: "ld0a", FS: l.Info()}, fs: l}
		p.info.Size = p.info.FS.Size
		if !o.Minimize {
			p.info.Size = max(p.info.Size, o.Size)
		}
		return p, nil
	case GPT:
		return o.planGPT(t, fo)
	}
	return nil, fmt.Errorf("layout %.40q: want %s or %s", o.Layout, FFS, GPT)
}

func (o Options) planGPT(t *tree.Tree, fo ffs.Options) (*planned, error) {
	// What is in front of and behind the partition; the image is whole pages.
	const around = gpt.Align + (gpt.Overhead+4095)/4096*4096
	if fo.Label == "" {
		fo.Label = DefaultLabel
	}
	if o.Size != 0 {
		if fo.Size -= around; fo.Size <= 0 {
			return nil, fmt.Errorf("%w: a partition table alone takes more than %d bytes", ffs.ErrSpace, o.Size)
		}
	}
	l, err := ffs.Plan(t, fo)
	if err != nil {
		return nil, err
	}
	p := &planned{info: Info{Layout: GPT, Root: "NAME=" + fo.Label, Offset: gpt.Align, FS: l.Info()}, fs: l}
	p.info.Size = p.info.FS.Size + around
	if !o.Minimize {
		p.info.Size = max(p.info.Size, o.Size)
	}
	id := p.info.FS.ID[:]
	p.disk = &gpt.Disk{
		Size: p.info.Size,
		ID:   gpt.NewGUID([]byte("disk"), id),
		Parts: []gpt.Partition{{
			Type: gpt.NetBSDFFS(), ID: gpt.NewGUID([]byte("partition"), id, []byte(fo.Label)), Name: fo.Label,
			Off: gpt.Align, Size: p.info.FS.Size,
		}},
	}
	return p, nil
}
