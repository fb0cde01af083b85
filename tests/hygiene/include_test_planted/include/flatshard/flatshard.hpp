// SPDX-License-Identifier: Apache-2.0
// Breaks the include rules on purpose: it forgets the others.
