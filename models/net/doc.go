// Package net has the networks themselves, each on one page with its shapes: the
// Student of the daily work, the blind-spot network (BSNConfig) and the diffusion
// network (TeacherConfig), with what they are given; and their weights files and the
// golden vectors that tell whether a backend computes them right.
package net
