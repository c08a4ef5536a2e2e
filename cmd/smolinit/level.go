package main

// level counts what hosts rely on: raise it with every field of the document, every
// item and every message that a host may send or want. builder/toolbox has smolinit
// as bytes and fails its test until they are of this level:
//
//	go generate ./builder/toolbox
const level = 2
