// In place of MLX's: members for each address space would be the same member here.
#pragma once
