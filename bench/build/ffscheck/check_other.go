//go:build !netbsd

package main

import "errors"

var errNetBSD = errors.New("it runs on NetBSD")

func (e Entry) check() error   { return errNetBSD }
func fill() (string, error)    { return "", errNetBSD }
func change() (string, error)  { return "", errNetBSD }
func changed() (string, error) { return "", errNetBSD }
