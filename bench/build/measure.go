package main

import (
	"context"
	"errors"
	"os"

	"github.com/smolvmm/smolvmm/builder/archive"
	"github.com/smolvmm/smolvmm/builder/image"
)

// childVerb makes this program build one image: FOLDER IMAGE.
const childVerb = "image-of"

func child(args []string) error {
	if len(args) != 2 {
		return errors.New("want a folder and an image's name")
	}
	ctx := context.Background()
	t, err := archive.FromDir(ctx, args[0], archive.DirOptions{KeepOwner: true})
	if err != nil {
		return err
	}
	f, err := os.Create(args[1])
	if err != nil {
		return err
	}
	// As makefs does, which leaves little room and does not sync.
	_, err = image.Build(ctx, f, t, image.Options{Minimize: true, Free: 1 << 20})
	return errors.Join(err, f.Close())
}
