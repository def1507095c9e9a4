// Package joint tests the deciders of orchestration together: what a booking makes of what it hears (booking/life), and what the
// coordinator does (saga), with the catalog and payment as their contracts describe them. Their own packages explore each against a
// sketch of the other, and more of what it alone must do; here neither is sketched.
package joint
