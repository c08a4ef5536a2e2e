// Package examples shows a guest's network put together by hand, as a program
// that embeds it does: a stack, what publishes ports, what captures frames. It
// has tests only; they hold the parts against each other.
package examples
