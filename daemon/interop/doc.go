// Package interop holds tests that run the real denoised program between
// programs of other projects: DCMTK's senders as scanners, DCMTK's storescp and
// Orthanc as archives, dciodvfy as the judge of derived objects. It has no code
// of its own outside the tests.
//
// Without those programs or without real data the tests skip;
// DENOISED_REQUIRE=peers,data makes them fail instead. A reader of the tests
// needs the types system (one denoised between two archives) and sent (what a
// scanner saw of each object).
package interop
